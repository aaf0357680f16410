"""TensorFlow ops that tf2onnx translates, but not into what TensorFlow computes."""

from __future__ import annotations

from collections.abc import Mapping

_EFFECT = "its effect would be dropped without a word"
_RANDOM = "draws other numbers than TensorFlow"
_V1_CONTROL_FLOW = "a region may hold half of a TF 1 loop or conditional"
_INVALID = "becomes an invalid model"
_RESOURCE = "holds state that a region can't"

UNSAFE: Mapping[str, str] = {
    "AsString": "formats numbers otherwise than TensorFlow",
    "Assert": _EFFECT,
    "CheckNumerics": _EFFECT,
    "DynamicStitch": "repeated indices make its result longer",
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
    "ParallelDynamicStitch": "repeated indices make its result longer",
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
    "SparseToDense": _INVALID,
    "StringToNumber": "ONNX parses numbers otherwise than TensorFlow",
    "Switch": _V1_CONTROL_FLOW,
    "TruncatedNormal": _RANDOM,
}
"""Op type -> why it must stay in TensorFlow."""

# In tf2onnx's registry, but part of a graph's frame rather than computations.
FRAME = frozenset({"NoOp", "Placeholder", "PlaceholderV2", "PlaceholderWithDefault"})
