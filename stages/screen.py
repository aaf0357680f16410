"""Which ops may be candidates at all, before anything is exported, and why the others may not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from stages.artifacts import Reason, layer_of
from stages.graph import FUNCTION_OPS, Graph, Node, is_placeholder
from stages.translate import UNSAFE, translatable_ops

BOUNDARY_DTYPES = frozenset({"float32", "float16", "bfloat16", "int32", "int64", "int8", "uint8", "bool"})
"""What may cross between TensorFlow and an engine (float64 bindings would silently become float32)."""
INTERIOR_DTYPES = BOUNDARY_DTYPES | {"variant", "complex64"}
"""What may also flow inside a region: variants are the tensor lists of Keras's recurrent layers, complex numbers become
pairs of real ones."""
TF1_CONTROL_FLOW = frozenset(
    prefix + op
    for prefix in ("", "Ref")
    for op in ("Switch", "Merge", "Enter", "Exit", "NextIteration", "Select", "LoopCond", "ControlTrigger")
) - {"Select"}
TRIVIAL = frozenset(
    {"Identity", "IdentityN", "NoOp", "Reshape", "Squeeze", "ExpandDims", "Shape", "ShapeN", "Size", "Rank", "Snapshot"}
    | {"StopGradient", "PreventGradient", "Pack", "Unpack", "StridedSlice", "Slice", "Cast", "Fill", "CheckNumerics"}
)
"""Ops that are not worth an engine by themselves: they only rename, reshape or compute sizes."""

Refusal = tuple[Reason, str]


def screen(graph: Graph, keep_in_tf: Sequence[str]) -> dict[int, Refusal]:
    """The needed ops that can't be in a region, by node number, each with the reason.

    Args:
        keep_in_tf: op types, node names or patterns for them (`decoder/*`) that the user wants left in TensorFlow.
    """
    translated = translatable_ops()
    refused: dict[int, Refusal] = {}
    for i in graph.computing():
        refusal = _refusal(graph, i, translated, keep_in_tf)
        if refusal is not None:
            refused[i] = refusal
    return refused


def kept_by_user(node: Node, keep_in_tf: Sequence[str]) -> bool:
    return any(fnmatchcase(node.op, p) or fnmatchcase(node.name, p) or layer_of(node.name) == p for p in keep_in_tf)


def _refusal(graph: Graph, i: int, translated: frozenset[str], keep_in_tf: Sequence[str]) -> Refusal | None:
    node = graph.nodes[i]
    if kept_by_user(node, keep_in_tf) or kept_by_user(replace(node, name=graph.full_name(node.name)), keep_in_tf):
        return Reason.USER, "--keep-in-tf"
    if node.op in TF1_CONTROL_FLOW:
        return Reason.CONTROL_FLOW, f"{node.op} is TF 1 control flow"
    if node.conditional:
        return Reason.CONTROL_FLOW, "inside a TF 1 conditional or loop frame"
    if node.op in UNSAFE:
        return Reason.UNSAFE, UNSAFE[node.op]
    if node.stateful:
        inner = " (or an op that it calls)" if node.op in FUNCTION_OPS else ""
        return Reason.STATEFUL, f"{node.op}{inner} has side effects or a state"
    if node.op not in translated:
        return Reason.UNTRANSLATED, f"tf2onnx has no translation of {node.op}"
    ends = [(f"input {n}", graph.tensor(*end)) for n, end in enumerate(node.inputs)]
    # What nobody reads does not matter: FusedBatchNormV3 has a last output without a known rank.
    read = {k for _, k in graph.consumers[i]} | {k for source, k in graph.fetched if source == i}
    ends += [(f"output {n}", tensor) for n, tensor in enumerate(node.outputs) if n in read]
    for place, tensor in ends:
        if tensor.dtype not in INTERIOR_DTYPES:
            return Reason.DTYPE, f"{place} is {tensor.dtype}"
        if tensor.shape is None and tensor.dtype != "variant":
            return Reason.UNKNOWN_RANK, f"{place} has an unknown rank"
    if not node.outputs:
        return Reason.STATEFUL, f"{node.op} has no result"
    return None


def work(graph: Graph, i: int) -> int:
    """How many computing ops a node counts for towards a region's smallest size: none if it only moves data, those of
    the functions that it calls (the body of a loop), else one."""
    node = graph.nodes[i]
    if node.op in TRIVIAL or is_placeholder(node.op):
        return 0
    if node.op in FUNCTION_OPS:
        functions = graph.library_for([node.name]).library.function
        return sum(inner.op not in TRIVIAL for function in functions for inner in function.node_def)
    return 1
