"""Translations that tf2onnx lacks or gets wrong, in its own form: a class with a method per opset it is valid from.

They are registered with tf2onnx's decorator, not given as `custom_op_handlers`: those are merged after the point where
provenance is recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tf2onnx.graph import Graph, Node


class _Erfc:
    """Erfc(x) = 1 - Erf(x); Keras 3 emits it for the exact GELU."""

    @classmethod
    def version_9(cls, ctx: Graph, node: Node, **_: object) -> None:
        import numpy as np
        from tf2onnx import utils

        name, source, outputs = node.name, node.input[0], list(node.output)
        shapes, dtypes = node.output_shapes, node.output_dtypes
        erf = ctx.make_node("Erf", [source], shapes=shapes, dtypes=dtypes)
        one = ctx.make_const(utils.make_name("one"), np.array(1, utils.map_onnx_to_numpy_type(dtypes[0])))
        ctx.remove_node(name)
        ctx.make_node("Sub", [one.output[0], erf.output[0]], name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


class _FloorMod:
    """tf2onnx rounds the quotient of integers towards zero: -7 mod 3 was -1 there, in TensorFlow it is 2. Floats, and small
    integers, are expanded before, but in functions, which are not looked into."""

    @classmethod
    def version_10(cls, ctx: Graph, node: Node, **kwargs: object) -> None:
        from tf2onnx.onnx_opset.math import FloorMod

        if not _of_integers(ctx, node):
            FloorMod.version_7(ctx, node, **kwargs)
            return
        node.type = "Mod"  # with the divisor's sign, like TensorFlow's


class _FloorDiv:
    """tf2onnx rounds the quotient of integers towards zero; x - x mod y is a multiple of y."""

    @classmethod
    def version_10(cls, ctx: Graph, node: Node, **kwargs: object) -> None:
        from tf2onnx.onnx_opset.math import FloorDiv

        if not _of_integers(ctx, node):
            FloorDiv.version_6(ctx, node, **kwargs)
            return
        dividend, divisor = node.input
        name, outputs = node.name, list(node.output)
        shapes, dtypes = node.output_shapes, node.output_dtypes
        rest = ctx.make_node("Mod", [dividend, divisor], shapes=shapes, dtypes=dtypes)
        multiple = ctx.make_node("Sub", [dividend, rest.output[0]], shapes=shapes, dtypes=dtypes)
        ctx.remove_node(name)
        inputs = [multiple.output[0], divisor]
        ctx.make_node("Div", inputs, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


class _OneHot:
    """Where(indices = 0, 1, 2, …; on; off). ONNX's OneHot counts negative indices from the end, where TensorFlow has no
    hot entry for them, and tf2onnx falls back to a Gather that fails on such indices for all dtypes but float32."""

    @classmethod
    def version_13(cls, ctx: Graph, node: Node, **_: object) -> None:
        import numpy as np
        import onnx
        from tf2onnx import utils

        indices, depth, on, off = node.input
        name, outputs, axis = node.name, list(node.output), node.get_attr_value("axis", -1)
        shapes, dtypes = node.output_shapes, node.output_dtypes
        rank = ctx.get_rank(indices)
        axis = rank if axis < 0 else axis
        indices = ctx.make_node("Cast", [indices], attr={"to": onnx.TensorProto.INT64}).output[0]
        where = ctx.make_consts([[axis]])[0].output[0]
        indices = ctx.make_node("Unsqueeze", [indices, where]).output[0]
        if ctx.get_node_by_output(depth).is_const():
            numbers = np.arange(ctx.get_tensor_value(depth)).reshape([-1] + [1] * (rank - axis))
            positions = ctx.make_const(utils.make_name("positions"), numbers).output[0]
        else:
            depth = ctx.make_node("Cast", [depth], attr={"to": onnx.TensorProto.INT64}).output[0]
            zero, one, column = (constant.output[0] for constant in ctx.make_consts([0, 1, [-1] + [1] * (rank - axis)]))
            positions = ctx.make_node("Range", [zero, depth, one]).output[0]
            positions = ctx.make_node("Reshape", [positions, column]).output[0]
        hot = ctx.make_node("Equal", [indices, positions]).output[0]
        ctx.remove_node(name)
        ctx.make_node("Where", [hot, on, off], name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


class _Select:
    """Where. tf2onnx multiplies by 0 and 1 and adds up: NaN and infinity in what is not selected came through, as in
    where(x > 0, log(x), 0)."""

    @classmethod
    def version_9(cls, ctx: Graph, node: Node, **_: object) -> None:
        import onnx

        condition, rank = node.input[0], ctx.get_rank(node.output[0])
        if node.type == "Select" and ctx.get_rank(condition) == 1 and rank != 1:  # chooses rows there
            column = ctx.make_consts([[-1] + [1] * (rank - 1)])[0].output[0]
            rows = ctx.make_node("Reshape", [condition, column]).output[0]
            ctx.replace_inputs(node, [rows, *node.input[1:]])
        if ctx.get_dtype(node.output[0]) != onnx.TensorProto.BOOL:
            node.type = "Where"
            return
        condition, first, second = node.input  # ONNX Runtime has no Where of booleans
        name, outputs, shapes, dtypes = node.name, list(node.output), node.output_shapes, node.output_dtypes
        otherwise = ctx.make_node("Not", [condition]).output[0]
        chosen = [ctx.make_node("And", pair).output[0] for pair in ([condition, first], [otherwise, second])]
        ctx.remove_node(name)
        ctx.make_node("Or", chosen, name=name, outputs=outputs, shapes=shapes, dtypes=dtypes)


class _TopKV2:
    """tf2onnx turns integers into float32, which is wrong from 2**24 on; ONNX takes them as they are."""

    @classmethod
    def version_13(cls, ctx: Graph, node: Node, **kwargs: object) -> None:
        import onnx
        from tf2onnx.onnx_opset.tensor import TopKV2

        kind = ctx.get_dtype(node.input[0])
        if kind not in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
            node.type = "TopK"
            TopKV2.version_13(ctx, node, **kwargs)
            return
        (values, places), shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
        count = ctx.make_node("Cast", [node.input[1]], attr={"to": onnx.TensorProto.INT64}).output[0]
        count = ctx.make_node("Reshape", [count, ctx.make_consts([[1]])[0].output[0]]).output[0]
        source, name = node.input[0], node.name
        ctx.remove_node(name)
        wide = f"{name}_places"
        ctx.make_node(
            "TopK",
            [source, count],
            name=name,
            outputs=[values, wide],
            shapes=shapes,
            dtypes=[kind, onnx.TensorProto.INT64],
        )
        ctx.make_node("Cast", [wide], attr={"to": dtypes[1]}, outputs=[places], shapes=shapes[1:], dtypes=dtypes[1:])


class _TruncateMod:
    """With the dividend's sign, as C does it."""

    @classmethod
    def version_10(cls, ctx: Graph, node: Node, **_: object) -> None:
        node.type = "Mod"
        node.set_attr("fmod", 1)


def state_split_sizes(graph: Graph) -> None:
    """Give every Split without sizes, which means equal parts, the sizes that TensorFlow knows.

    ONNX Runtime's common-subexpression elimination takes two such nodes on one tensor for the same even where they have
    different numbers of outputs, as `tf.split(x, 2, 1)` and `tf.unstack(x, axis=1)` do (1.32: the wrong shapes).
    """
    import numpy as np
    from tf2onnx import utils

    for node in graph.get_nodes():
        for body in (node.get_body_graphs() or {}).values():
            state_split_sizes(body)
        shape = graph.get_shape(node.input[0]) if node.type == "Split" and len(node.input) == 1 else None
        size = -1 if shape is None else shape[node.get_attr_value("axis", 0)]
        if size > 0 and size % len(node.output) == 0:
            sizes = np.full(len(node.output), size // len(node.output), np.int64)
            graph.replace_inputs(node, [*node.input, graph.make_const(utils.make_name("sizes"), sizes).output[0]])


def _of_integers(ctx: Graph, node: Node) -> bool:
    import numpy as np
    from tf2onnx import utils

    return bool(np.issubdtype(utils.map_onnx_to_numpy_type(ctx.get_dtype(node.input[0])), np.integer))


HANDLERS = {
    "Erfc": _Erfc,
    "FloorDiv": _FloorDiv,
    "FloorMod": _FloorMod,
    "OneHot": _OneHot,
    "Select": _Select,
    "SelectV2": _Select,
    "Mod": _TruncateMod,
    "TopKV2": _TopKV2,
    "TruncateMod": _TruncateMod,
}


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Have the translations in tf2onnx's registry for the length of a block."""
    from tf2onnx.constants import ONNX_DOMAIN
    from tf2onnx.handler import tf_op

    opsets = tf_op.get_opsets()[ONNX_DOMAIN]
    before = [dict(handlers) for handlers in opsets]
    try:
        for op_type, handler in HANDLERS.items():
            tf_op(op_type)(handler)
        yield
    finally:
        del opsets[len(before) :]
        for handlers, original in zip(opsets, before, strict=True):
            handlers.clear()
            handlers.update(original)
