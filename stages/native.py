"""The native segment: a region's own TensorFlow ops as a function, which runs where no engine can."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.graph import Graph
from stages.importing import import_graph
from stages.regions import Cut, extract

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.function_pb2 import FunctionDef


@dataclass(frozen=True, slots=True)
class NativeSegment:
    """`functions` are the segment (first) and what it calls. Its arguments are the region's inputs, then one resource
    handle for each of `weights` (node names of large weights); its results are the region's outputs."""

    name: str
    functions: tuple[FunctionDef, ...]
    weights: tuple[str, ...]


def native_segment(graph: Graph, boundary: Cut, prefix: str, *, weights_inside: bool) -> NativeSegment:
    """Make a region's native segment.

    Args:
        prefix: how the function's name begins; a digest of its content follows.
        weights_inside: large weights become constants of the function (for a GraphDef that stands alone); else they are
            read from variables.
    """
    import tensorflow as tf

    subgraph = extract(graph, boundary, weights_inside=weights_inside)
    weights = [graph.weights[node] for node in subgraph.weights]

    def segment(*arguments: tf.Tensor) -> list[tf.Tensor]:
        inputs, handles = arguments[: len(subgraph.inputs)], arguments[len(subgraph.inputs) :]
        values = [
            tf.ensure_shape(tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.as_dtype(weight.dtype)), weight.shape)
            for handle, weight in zip(handles, weights, strict=True)
        ]
        tensors = dict(zip(subgraph.inputs, inputs, strict=True))
        tensors |= {f"{weight.node}:0": value for weight, value in zip(weights, values, strict=True)}
        return import_graph(subgraph.graph_def, tensors, subgraph.outputs)

    boundary_tensors = [graph.tensor(*end) for end in boundary.inputs]
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in boundary_tensors]
    signature += [tf.TensorSpec([], tf.resource)] * len(weights)
    concrete = tf.function(segment, autograph=False).get_concrete_function(*signature)
    main = type(concrete.function_def)()
    main.CopyFrom(concrete.function_def)
    main.signature.name = ""
    # Functions are known by name alone, process-wide: another model's segment must never pass for this one.
    main.signature.name = f"{prefix}_{hashlib.sha256(main.SerializeToString(deterministic=True)).hexdigest()[:16]}"
    called = tuple(concrete.graph.as_graph_def().library.function)
    return NativeSegment(main.signature.name, (main, *called), tuple(weight.node for weight in weights))


def reads(segments: Sequence[NativeSegment]) -> tuple[str, ...]:
    """The large weights that any of the segments reads, each once."""
    return tuple(dict.fromkeys(node for segment in segments for node in segment.weights))
