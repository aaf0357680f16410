"""Ranges that a model brings with it: TensorFlow's fake quantisation, as quantisation-aware training leaves it.

In float32 such an op is exported step by step, exactly as TensorFlow computes it (`translate/expand/quantised.py`). For
int8 and fp8 these steps become a Q/DQ pair with the op's own range, symmetric as TensorRT wants it: up to the larger of
|min| and |max|, as TF-TRT did. On weights the op is a constant by then; their scales are found from their values, which
reach the end of the range that they were trained in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stages.artifacts import FrozenGraph
from stages.graph import Graph
from stages.precision.table import Range
from stages.precision.types import names_read
from stages.translate.provenance import tagged

if TYPE_CHECKING:
    import onnx
    import tensorflow as tf

_ATTRIBUTES = frozenset({"FakeQuantWithMinMaxArgs"})
_INPUTS = frozenset({"FakeQuantWithMinMaxVars"} | {f"QuantizeAndDequantizeV{version}" for version in (2, 3, 4)})
_STEPS = frozenset({"Min", "Max", "Clip", "Sub", "Add", "Mul", "Div", "Floor", "Round", "Where", "Transpose"})
_BITS = 8


def states_ranges(frozen: FrozenGraph) -> bool:
    """Whether a model has any fake quantisation."""
    graph_def = frozen.graph_def()
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    return any(node.op in _ATTRIBUTES | _INPUTS for node in nodes)


def stated_ranges(graph: Graph, ops: Iterable[str]) -> dict[str, Range]:
    """The range of each of the ops that quantises a tensor to 8 bits with constant bounds, by the op's name."""
    found: dict[str, Range] = {}
    for name in ops:
        node = graph.node_defs[name]
        bounds = _bounds(graph, node) if node.op in _ATTRIBUTES | _INPUTS else None
        if bounds and max(map(abs, bounds)) > 0:
            found[name] = Range(max(map(abs, bounds)), *bounds)
    return found


def _bounds(graph: Graph, node: tf.compat.v1.NodeDef) -> tuple[float, float] | None:
    if node.op in _ATTRIBUTES:
        return (node.attr["min"].f, node.attr["max"].f) if node.attr["num_bits"].i == _BITS else None
    if node.op.startswith("Quantize") and not node.attr["range_given"].b:
        return None
    bits = _scalar(graph, node.input[3]) if node.op.endswith("V3") else node.attr["num_bits"].i
    low, high = (_scalar(graph, reference) for reference in node.input[1:3])
    return None if bits != _BITS or low is None or high is None else (low, high)


def _scalar(graph: Graph, reference: str) -> float | None:
    """The value of a constant; None if it is none, or holds more than one number."""
    import tensorflow as tf

    node = graph.node_defs[reference.split(":", maxsplit=1)[0]]
    while node.op == "Identity":
        node = graph.node_defs[node.input[0].split(":")[0]]
    if node.op != "Const":
        return None
    value = tf.make_ndarray(node.attr["value"].tensor)
    return float(value.reshape(-1)[0]) if value.size == 1 else None


def chain(nodes: Iterable[onnx.NodeProto], constants: Mapping[str, object], op: str) -> list[onnx.NodeProto]:
    """The ONNX nodes of a fake quantisation, one after the other: each reads what the one before it made, and else only
    constants. Empty if they are not of that form, as after an optimisation across its boundary."""
    steps = [node for node in nodes if tagged(node) == {op}]
    last = ""
    for node in steps:
        data = [name for name in node.input if name not in constants]
        if node.op_type not in _STEPS or len(data) != 1 or (last and data[0] != last) or len(node.output) != 1:
            return []
        last = node.output[0]
    return steps


def without_inverses(nodes: Sequence[onnx.NodeProto], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes less the Transposes that undo one another, as they are left where steps between them are gone."""
    made = {node.output[0]: node for node in nodes if node.op_type == "Transpose"}
    same: dict[str, str] = {}
    for node in made.values():
        node.input[0] = same.get(node.input[0], node.input[0])
        before = made.get(node.input[0])
        if (
            before is not None
            and node.output[0] not in outputs
            and [_perm(before)[p] for p in _perm(node)] == sorted(_perm(node))
        ):
            same[node.output[0]] = before.input[0]
    for node in nodes:
        for place, name in enumerate(node.input):
            node.input[place] = same.get(name, name)
    read, kept = set(outputs), []
    for node in reversed(nodes):
        if node.op_type != "Transpose" or node.output[0] in read:
            read |= names_read([node])
            kept.append(node)
    return kept[::-1]


def _perm(node: onnx.NodeProto) -> list[int]:
    return next(list(attribute.ints) for attribute in node.attribute if attribute.name == "perm")
