"""TensorFlow ops that tf2onnx translates, but not into what TensorFlow computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

_EFFECT = "its effect would be dropped without a word"
_RANDOM = "draws other numbers than TensorFlow"
_V1_CONTROL_FLOW = "a region may hold half of a TF 1 loop or conditional"
_RESOURCE = "the table, queue or iterator that it uses lives in TensorFlow"

UNSAFE: Mapping[str, str] = {
    "AsString": "formats numbers otherwise than TensorFlow",
    "Assert": _EFFECT,
    "CheckNumerics": _EFFECT,
    "Enter": _V1_CONTROL_FLOW,
    "Exit": _V1_CONTROL_FLOW,
    "FIFOQueueV2": _RESOURCE,
    "HashTableV2": _RESOURCE,
    "IteratorGetNext": _RESOURCE,
    "IteratorV2": _RESOURCE,
    "LookupTableFindV2": _RESOURCE,
    "LookupTableSizeV2": _RESOURCE,
    "LoopCond": _V1_CONTROL_FLOW,
    "Merge": _V1_CONTROL_FLOW,
    "Multinomial": _RANDOM,
    "NextIteration": _V1_CONTROL_FLOW,
    "NonMaxSuppressionV5": "ignores the soft-NMS sigma and score output",
    "Print": _EFFECT,
    "PrintV2": _EFFECT,
    "QueueDequeueManyV2": _RESOURCE,
    "QueueDequeueUpToV2": _RESOURCE,
    "QueueDequeueV2": _RESOURCE,
    "RandomShuffle": _RANDOM,
    "RandomStandardNormal": _RANDOM,
    "RandomUniform": _RANDOM,
    "RandomUniformInt": _RANDOM,
    "SampleDistortedBoundingBox": _RANDOM,
    "SampleDistortedBoundingBoxV2": _RANDOM,
    "StringToNumber": "ONNX parses numbers otherwise than TensorFlow",
    "Switch": _V1_CONTROL_FLOW,
    "TruncatedNormal": _RANDOM,
}
"""Op type -> why it must stay in TensorFlow."""

# In tf2onnx's registry, but part of a graph's frame rather than computations.
FRAME = frozenset({"NoOp", "Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})

EXPANDED_OUTSIDE = frozenset(
    {"DynamicStitch", "ParallelDynamicStitch", "SparseToDense"}
    | {"AdjustSaturation", "CropAndResize", "ExtractImagePatches", "FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars"}
    | {"LeftShift", "MatrixBandPart", "ResizeArea", "ResizeBicubic", "RightShift", "ScatterNd", "TruncateDiv"}
    | {f"Segment{kind}" for kind in ("Max", "Mean", "Min", "Prod", "Sum")}
    | {f"SparseSegment{kind}{count}" for kind in ("Mean", "SqrtN", "Sum") for count in ("", "WithNumSegments")}
    | {f"UnsortedSegment{kind}" for kind in ("Max", "Min", "Prod", "Sum")}
)
"""What tf2onnx translates wrongly and `expand` rightly, but not in functions, into which it does not look."""


def unsafe_calls(graph_def: tf.compat.v1.GraphDef) -> dict[str, str]:
    """The loops and branches, by name, that hold an op which would be translated wrongly, with the reason."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    wrong: dict[str, str] = {}

    def inside(nodes: Iterable[tf.compat.v1.NodeDef], seen: frozenset[str]) -> str:
        for node in nodes:
            if node.op in UNSAFE or node.op in EXPANDED_OUTSIDE:
                return f"holds {node.op}: {UNSAFE.get(node.op, 'tf2onnx translates it wrongly in a loop or branch')}"
            if why := called(node, seen):
                return why
        return ""

    def called(node: tf.compat.v1.NodeDef, seen: frozenset[str]) -> str:
        for attr in node.attr.values():
            for name in [attr.func.name, *(func.name for func in attr.list.func)]:
                if name in functions and name not in seen and (why := inside(functions[name].node_def, seen | {name})):
                    return why
        return ""

    for node in graph_def.node:
        if why := called(node, frozenset()):
            wrong[node.name] = why
    return wrong
