"""How much work each op of a frozen graph does: an estimate from shapes, nothing is run.

Assumptions:
- FLOPs are arithmetic operations; a multiply-add is two. A transcendental function of one element counts as one. The
  arithmetic of convolutions, matrix products, pooling and reductions follows from their definition; batch
  normalisation is a multiply-add, softmax five per element, an FFT 5·n·log2(n). What only moves data has none. Any
  other op has one for each element of its results.
- Bytes are inputs read plus results written, each once, weights included, as if nothing were fused or cached. Views
  (Reshape, Identity) move nothing; slicing and gathering read what they give.
- The sizes of the model's inputs are given. An axis that still is unknown (it depends on data) counts as 1, a loop as one
  turn, a branch as its heavier side; `exact` is False then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.graph import FUNCTION_OPS, Graph
from stages.library import attribute_functions

if TYPE_CHECKING:
    import tensorflow as tf

Sizes = tuple[int, ...]

_VIEWS = frozenset(
    {"Reshape", "Identity", "IdentityN", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient", "Snapshot"}
)
_SIZE_OPS = frozenset({"Shape", "ShapeN", "Size", "Rank"})
"""These read no values."""
_PARTIAL_READS = frozenset({"Gather", "GatherV2", "GatherNd", "ResourceGather", "Slice", "StridedSlice"})
_MOVES = frozenset(
    {
        "Transpose",
        "Concat",
        "ConcatV2",
        "Pack",
        "Unpack",
        "Split",
        "SplitV",
        "Pad",
        "PadV2",
        "MirrorPad",
        "Tile",
        "Fill",
    }
    | {"Cast", "Bitcast", "BroadcastTo", "ZerosLike", "OnesLike", "Reverse", "ReverseV2", "ReverseSequence", "Roll"}
    | {
        "SpaceToDepth",
        "DepthToSpace",
        "SpaceToBatchND",
        "BatchToSpaceND",
        "ExtractImagePatches",
        "ResizeNearestNeighbor",
    }
    | {"Select", "SelectV2", "Where", "ScatterNd", "TensorScatterUpdate", "DynamicStitch", "DynamicPartition"}
    | {"Assert", "Print", "PrintV2", "CheckNumerics"}
)
_REDUCTIONS = frozenset(
    {
        "Sum",
        "Mean",
        "Max",
        "Min",
        "Prod",
        "All",
        "Any",
        "ArgMax",
        "ArgMin",
        "EuclideanNorm",
        "L2Loss",
        "Cumsum",
        "Cumprod",
    }
)
_OPAQUE = ("string", "variant", "resource")
"""Dtypes whose elements have no size and no arithmetic that could be known."""


@dataclass(frozen=True, slots=True)
class Work:
    """An estimate for one op: `exact` is False where a size, a branch or a number of turns had to be assumed."""

    flops: int
    bytes: int
    exact: bool = True


def estimate_work(graph: Graph, sizes: Mapping[str, Sequence[int]]) -> dict[str, Work]:
    """The work of every computing op of a frozen graph, by node name; see the module for what is assumed.

    Args:
        sizes: the shape of each of the model's inputs, by tensor name; TensorFlow infers the others from them. What is
            left out keeps its open axes.
    """
    import tensorflow as tf

    fixed = tf.compat.v1.GraphDef()
    fixed.CopyFrom(graph.graph_def)
    shapes = {name.rsplit(":", 1)[0]: tf.TensorShape(list(shape)).as_proto() for name, shape in sizes.items()}
    for node in fixed.node:
        if node.name in shapes:
            node.attr["shape"].shape.CopyFrom(shapes[node.name])
    imported = _imported(fixed)
    with imported.as_default():
        operations = {op.name: op for op in imported.get_operations()}
        return {
            name: _work(operations[name], graph, frozenset())
            for name in (graph.nodes[i].name for i in graph.computing())
        }


def _imported(graph_def: tf.compat.v1.GraphDef) -> tf.Graph:
    """The graph with all shapes that follow from those of its inputs."""
    import tensorflow as tf

    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
    except ValueError:
        # A shape that was recorded for one size of the inputs contradicts another; without it TensorFlow infers.
        graph = tf.Graph()
        for node in graph_def.node:
            node.attr.pop("_output_shapes", None)
        with graph.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
    return graph


def _work(op: tf.Operation, graph: Graph, above: frozenset[str]) -> Work:
    if op.type in FUNCTION_OPS:
        return _work_of_call(op, graph, above)
    inputs, outputs = [_sizes(t) for t in op.inputs], [_sizes(t) for t in op.outputs]
    known = all(t.shape.is_fully_defined() or t.dtype.name in _OPAQUE for t in (*op.inputs, *op.outputs))
    return Work(_flops(op, inputs, outputs), _bytes(op), known)


def _work_of_call(op: tf.Operation, graph: Graph, above: frozenset[str]) -> Work:
    """The functions that an op calls, with the shapes that it gives them: all of a call or loop turn, else the heaviest."""
    called = attribute_functions(op.node_def)
    loop = op.type in ("While", "StatelessWhile")
    arguments = list(op.inputs) if loop or "PartitionedCall" in op.type else list(op.inputs)[1:]
    bodies = [_work_of_function(name, arguments, graph, above) for name in called]
    if loop or len(bodies) < 2:
        return Work(
            sum(b.flops for b in bodies), sum(b.bytes for b in bodies), not loop and all(b.exact for b in bodies)
        )
    heaviest = max(bodies, key=lambda body: (body.flops, body.bytes))
    return Work(heaviest.flops, heaviest.bytes, exact=False)


def _work_of_function(name: str, arguments: Sequence[tf.Tensor], graph: Graph, above: frozenset[str]) -> Work:
    from tensorflow.core.framework import function_pb2
    from tensorflow.python.framework import function_def_to_graph

    if name in above or name not in graph.library:
        return Work(0, 0, exact=False)
    definition = function_pb2.FunctionDef()
    definition.CopyFrom(graph.library[name])
    for attributes in definition.arg_attr.values():
        attributes.attr.pop("_output_shapes", None)  # they would win over the shapes given
    body = function_def_to_graph.function_def_to_graph(definition, input_shapes=[t.shape.as_proto() for t in arguments])
    with body.as_default():
        parts = [
            _work(op, graph, above | {name})
            for op in body.get_operations()
            if op.type not in ("Const", "Placeholder", "NoOp")
        ]
    return Work(sum(p.flops for p in parts), sum(p.bytes for p in parts), all(p.exact for p in parts))


def _flops(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    rule = _RULES.get(op.type)
    if rule is not None:
        # A tensor of unknown rank has no axes to count with.
        return rule(op, inputs, outputs) if all(t.shape.rank is not None for t in (*op.inputs, *op.outputs[:1])) else 0
    if op.type in _VIEWS | _SIZE_OPS | _PARTIAL_READS | _MOVES:
        return 0
    if op.type in _REDUCTIONS:
        return math.prod(inputs[0])
    return sum(math.prod(s) for s, t in zip(outputs, op.outputs, strict=True) if t.dtype.name not in _OPAQUE)


def _bytes(op: tf.Operation) -> int:
    if op.type in _VIEWS:
        return 0
    written = sum(map(_tensor_bytes, op.outputs))
    if op.type in _SIZE_OPS:
        return written
    if op.type in _PARTIAL_READS:
        return 2 * written + sum(map(_tensor_bytes, list(op.inputs)[1:]))
    return written + sum(map(_tensor_bytes, op.inputs))


def _tensor_bytes(tensor: tf.Tensor) -> int:
    return 0 if tensor.dtype.base_dtype.name in _OPAQUE else math.prod(_sizes(tensor)) * int(tensor.dtype.size)


def _sizes(tensor: tf.Tensor) -> Sizes:
    return () if tensor.shape.rank is None else tuple(1 if axis is None else axis for axis in tensor.shape.as_list())


Rule = Callable[["tf.Operation", Sequence[Sizes], Sequence[Sizes]], int]


def _matmul(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    return 2 * math.prod(outputs[0]) * inputs[0][0 if op.get_attr("transpose_a") else 1]


def _batch_matmul(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    return 2 * math.prod(outputs[0]) * inputs[0][-2 if op.get_attr("adj_x") else -1]


def _convolution(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    return 2 * math.prod(outputs[0]) * math.prod(inputs[1][:-1])  # the filter's channels are those of one group


def _depthwise(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    return 2 * math.prod(outputs[0]) * math.prod(inputs[1][:2])


def _transposed_convolution(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    return 2 * math.prod(inputs[2]) * math.prod(inputs[1][:-1])


def _pool(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    window: list[int] = op.get_attr("ksize")
    return math.prod(outputs[0]) * math.prod(window)


def _fft(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    axes = 3 if op.type.endswith("3D") else 2 if op.type.endswith("2D") else 1
    wide = max(inputs[0], outputs[0], key=math.prod)  # the real side of RFFT
    length = math.prod(wide[-axes:])
    return int(5 * math.prod(wide) * math.log2(length)) if length else 0


def _einsum(op: tf.Operation, inputs: Sequence[Sizes], outputs: Sequence[Sizes]) -> int:
    """Every combination of index values once: a multiply-add each, or an add where there is one operand."""
    subscripts = op.get_attr("equation").decode().split("->")[0].split(",")
    extent: dict[str, int] = {}
    for labels, sizes in zip(subscripts, inputs, strict=True):
        for label, size in _labelled(labels.strip(), sizes):
            extent[label] = max(extent.get(label, 1), size) if size else 0
    return (2 if len(inputs) > 1 else 1) * math.prod(extent.values())


def _labelled(labels: str, sizes: Sizes) -> Iterable[tuple[str, int]]:
    """Each axis with its label; axes under an ellipsis are numbered from the right, as broadcasting aligns them."""
    before, ellipsis, after = labels.partition("...")
    hidden = len(sizes) - len(before) - len(after) if ellipsis else 0
    names = [*before, *(f"...{hidden - i}" for i in range(hidden)), *after]
    return zip(names, sizes, strict=True)


_RULES: dict[str, Rule] = {
    "MatMul": _matmul,
    **dict.fromkeys(("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _batch_matmul),
    "Einsum": _einsum,
    **dict.fromkeys(("Conv2D", "Conv3D"), _convolution),
    "DepthwiseConv2dNative": _depthwise,
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), _transposed_convolution),
    **dict.fromkeys(("MaxPool", "AvgPool", "MaxPool3D", "AvgPool3D"), _pool),
    **dict.fromkeys(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3"), lambda op, i, o: 2 * math.prod(o[0])),
    **dict.fromkeys(("Softmax", "LogSoftmax"), lambda op, i, o: 5 * math.prod(o[0])),
    "AddN": lambda op, i, o: (len(i) - 1) * math.prod(o[0]),
    **dict.fromkeys((f"{kind}FFT{n}" for kind in ("", "I", "R", "IR") for n in ("", "2D", "3D")), _fft),
}
