"""Single-op models: a graph with one op between Placeholders and outputs that may cross a boundary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.coverage.cases import CASES
from benchmarks.coverage.inputs import BY_NAME, Argument, Case, Feed, Fixed, d

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.op_def_pb2 import OpDef

DTYPES = ("float32", "float16", "int32", "int64", "uint8", "int8", "bool", "complex64")
OTHERS = ("float32", "int32", "int64", "float16", "bool", "uint8")
"""Dtypes of an op, and those that another type attribute takes first."""
_MAIN = ("T", "Tparams", "SrcT", "dtype", "Tcomplex", "Treal", "Tidx", "TI")


@dataclass(frozen=True, slots=True)
class Model:
    """`feeds` holds each Placeholder's contents, by tensor name; complex ones come as two."""

    graph_def: tf.compat.v1.GraphDef
    feeds: Mapping[str, tuple[Feed, str]]
    outputs: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...] | None, ...]

    def values(self, batch: int, edges: bool, seed: int) -> dict[str, np.ndarray]:
        import tensorflow as tf

        rng = np.random.default_rng(seed)
        found = {}
        for name, (feed, dtype) in self.feeds.items():
            make = feed.edges if edges else feed.values
            found[name] = make(batch, np.dtype(tf.as_dtype(dtype).as_numpy_dtype), rng)
        return found


def main_attr(op: OpDef) -> str:
    """The type attribute that counts as the op's dtype; nothing for an op without one."""
    inputs = {arg.type_attr for arg in op.input_arg if arg.type_attr}
    typed = [attr.name for attr in op.attr if attr.type == "type"]
    return next((n for n in (*_MAIN, *inputs, *typed) if n in typed and (n in inputs or not inputs)), "")


def dtypes(op: OpDef) -> list[str]:
    """Dtypes to try, the usual one first; one empty name for an op without a choice."""
    name = main_attr(op)
    if not name:
        return [""]
    attr = next(attr for attr in op.attr if attr.name == name)
    return [dtype for dtype in DTYPES if dtype in _allowed(attr)] or [""]


def broadcast(op: OpDef, dtype: str) -> Model | None:
    """The model of an op with two inputs of one shape, where TensorFlow also takes the second without its first axis."""
    case = CASES.get(op.name, Case())
    given = [case.inputs.get(arg.name, BY_NAME.get(arg.name, d(None, 4))) for arg in op.input_arg]
    if len(given) != 2 or any(not isinstance(one, Feed) or one.shape != (None, 4) for one in given):
        return None
    try:
        second = op.input_arg[1].name
        return build(op, dtype, {**case.inputs, second: replace(given[1], shape=(4,))})  # type: ignore[type-var]
    except (ValueError, TypeError):
        return None


def build(op: OpDef, dtype: str, inputs: Mapping[str, Argument] | None = None) -> Model:
    """The model of an op in one dtype; `inputs` instead of those of its case.

    Raises:
        Exception: whatever TensorFlow says of it.
    """
    import tensorflow as tf
    from tensorflow.python.framework import op_def_library

    case = CASES.get(op.name, Case())
    types = dict(case.types) | ({main_attr(op): dtype} if dtype else {})
    for attr in op.attr:
        if attr.type == "type" and attr.name not in types and attr.name not in case.attrs:
            if attr.HasField("default_value"):
                types[attr.name] = tf.as_dtype(attr.default_value.type).name
            else:
                types[attr.name] = next(kind for kind in OTHERS if kind in _allowed(attr))
    feeds: dict[str, tuple[Feed, str]] = {}
    arguments: dict[str, object] = {}
    with tf.Graph().as_default() as graph:
        for arg in op.input_arg:
            kind = tf.as_dtype(arg.type).name if arg.type else types.get(arg.type_attr, dtype or "float32")
            many = bool(arg.number_attr or arg.type_list_attr)
            given = (case.inputs if inputs is None else inputs).get(arg.name)
            arguments[arg.name] = _argument(arg.name, given, many, kind, feeds)
        inferred = {name for arg in op.input_arg for name in (arg.type_attr, arg.number_attr, arg.type_list_attr)}
        attrs = {attr.name: _default(attr) for attr in op.attr if attr.HasField("default_value")}
        attrs |= {name: tf.as_dtype(kind) for name, kind in types.items()} | dict(case.attrs)
        attrs = {attr.name: attrs[attr.name] for attr in op.attr if attr.name in attrs and attr.name not in inferred}
        # Not tf.raw_ops, which has other names for some arguments.
        result = op_def_library.apply_op(op.name, **arguments, **attrs)
        flat = [part for part in tf.nest.flatten(result) if isinstance(part, tf.Tensor)]
        ends = []
        for tensor in flat[: case.outputs]:
            parts = [tf.math.real(tensor), tf.math.imag(tensor)] if tensor.dtype.is_complex else [tensor]
            ends += [tf.identity(part) for part in parts]
        shapes = tuple(None if end.shape.rank is None else tuple(end.shape.as_list()) for end in ends)
        return Model(graph.as_graph_def(add_shapes=True), feeds, tuple(end.name for end in ends), shapes)


def _default(attr: OpDef.AttrDef) -> object:
    import tensorflow as tf

    value = attr.default_value
    kind = str(value.WhichOneof("value"))
    if kind == "list":
        return [item for _, items in value.list.ListFields() for item in items]
    if kind == "type":
        return tf.as_dtype(value.type)
    return getattr(value, kind)


def _allowed(attr: OpDef.AttrDef) -> list[str]:
    import tensorflow as tf

    return [tf.as_dtype(kind).name for kind in attr.allowed_values.list.type] or list(DTYPES)


def _argument(name: str, given: Argument | None, many: bool, kind: str, feeds: dict[str, tuple[Feed, str]]) -> object:

    given = given if given is not None else BY_NAME.get(name, d(None, 4))
    if isinstance(given, (Feed, Fixed)):
        value = _value(name, given, kind, feeds)
        return [value, value] if many else value
    return [_value(f"{name}_{i}", one, kind, feeds) for i, one in enumerate(given)]


def _value(name: str, given: Feed | Fixed, kind: str, feeds: dict[str, tuple[Feed, str]]) -> tf.Tensor:
    import tensorflow as tf

    if isinstance(given, Fixed):
        return tf.constant(np.asarray(given.value), tf.as_dtype(kind))
    if tf.as_dtype(kind).is_complex:
        parts = [tf.compat.v1.placeholder(tf.float32, given.shape, f"graftrt_{name}_{part}") for part in ("re", "im")]
        feeds.update({part.name: (given, "float32") for part in parts})
        return tf.complex(*parts)
    tensor = tf.compat.v1.placeholder(tf.as_dtype(kind), given.shape, f"graftrt_{name}")
    feeds[tensor.name] = (given, kind)
    return tensor
