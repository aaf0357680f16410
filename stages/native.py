"""The native segment: a region's own TensorFlow ops as a function, which runs where no engine can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.graph import Graph
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


def native_segment(graph: Graph, boundary: Cut, name: str, *, weights_inside: bool) -> NativeSegment:
    """Make a region's native segment.

    Args:
        name: the function's name in the stitched graph; unique in it.
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
        input_map = dict(zip(subgraph.inputs, inputs, strict=True))
        input_map |= {f"{weight.node}:0": value for weight, value in zip(weights, values, strict=True)}
        results: list[tf.Tensor] = tf.graph_util.import_graph_def(
            subgraph.graph_def, input_map=input_map, return_elements=list(subgraph.outputs), name=""
        )
        return results

    tensors = [graph.tensor(*end) for end in boundary.inputs]
    signature = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]
    signature += [tf.TensorSpec([], tf.resource)] * len(weights)
    concrete = tf.function(segment, autograph=False).get_concrete_function(*signature)
    main = type(concrete.function_def)()
    main.CopyFrom(concrete.function_def)
    main.signature.name = name
    called = [f for f in concrete.graph.as_graph_def().library.function if f.signature.name != concrete.name]
    return NativeSegment(name, (main, *called), tuple(weight.node for weight in weights))


def reads(segments: Sequence[NativeSegment]) -> tuple[str, ...]:
    """The large weights that any of the segments reads, each once."""
    return tuple(dict.fromkeys(node for segment in segments for node in segment.weights))
