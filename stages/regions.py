"""Regions of a graph: where their boundary runs, and the sub-graph that computes them by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.artifacts import Tensor, load_weight
from stages.graph import Graph

if TYPE_CHECKING:
    import tensorflow as tf

End = tuple[int, int]
"""A tensor of the graph, as (node number, output number)."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The boundary of a set of nodes. `inputs` come in the order in which the nodes read them, but those that TensorFlow
    keeps in host memory last; `outputs` in node order; `controls_in` are nodes outside that one inside waits for."""

    ops: tuple[int, ...]
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    controls_in: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Subgraph:
    """A set of nodes as a GraphDef of its own. `inputs[i]` is the Placeholder tensor of `Cut.inputs[i]`; `outputs[i]`
    the tensor of `Cut.outputs[i]`; `weights` are Placeholders that stand for large weights, by node name."""

    graph_def: tf.compat.v1.GraphDef
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...] = ()


def cut(graph: Graph, ops: Sequence[int]) -> Cut:
    """The boundary of a convex set of nodes. Free nodes are never on it; a tensor is an output if a needed node outside
    or the model's signature reads it."""
    inside = set(ops)
    inputs: dict[End, None] = {}
    controls: dict[int, None] = {}
    outputs: list[End] = []
    for i in ops:
        node = graph.nodes[i]
        for end in node.inputs:
            if end[0] not in inside and not graph.nodes[end[0]].free:
                inputs[end] = None
        for source in node.controls:
            if source not in inside and not graph.nodes[source].free:
                controls[source] = None
        read = {k for consumer, k in graph.consumers[i] if consumer not in inside and graph.nodes[consumer].needed}
        outputs.extend((i, k) for k in range(len(node.outputs)) if k in read or (i, k) in graph.fetched)
    ordered = sorted(inputs, key=lambda end: in_host_memory(graph.tensor(*end)))
    return Cut(tuple(ops), tuple(ordered), tuple(outputs), tuple(controls))


def in_host_memory(tensor: Tensor) -> bool:
    """Whether TensorFlow keeps a tensor in host memory beside a GPU: its convention for int32, which is mostly sizes."""
    return tensor.dtype == "int32"


def tensors(graph: Graph, ends: Sequence[End]) -> tuple[Tensor, ...]:
    return tuple(graph.tensor(*end) for end in ends)


def extract(graph: Graph, boundary: Cut, *, weights_inside: bool) -> Subgraph:
    """The sub-graph of a region, with Placeholders at its boundary and the constants that it reads.

    Args:
        weights_inside: make large weights constants of the GraphDef (for tf2onnx); else they are Placeholders (for the
            native segment, which reads them from variables).
    """
    import tensorflow as tf

    placeholders = {end: f"graftrt_input_{i}" for i, end in enumerate(boundary.inputs)}
    wanted = _with_constants(graph, boundary.ops)
    result = graph.library_for(graph.nodes[i].name for i in wanted)
    for end, name in placeholders.items():
        tensor = graph.tensor(*end)
        node = result.node.add(name=name, op="Placeholder")
        node.attr["dtype"].type = tf.as_dtype(tensor.dtype).as_datatype_enum
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(tensor.shape).as_proto())
    weights: list[str] = []
    inside = set(wanted)
    for i in wanted:
        node = graph.nodes[i]
        copy = result.node.add()
        if node.name in graph.weights and weights_inside:
            weight = graph.weights[node.name]
            copy.name, copy.op = node.name, "Const"
            copy.attr["dtype"].type = tf.as_dtype(weight.dtype).as_datatype_enum
            copy.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(load_weight(graph.frozen, weight)))
            continue
        if node.name in graph.weights:
            weights.append(node.name)
        copy.CopyFrom(graph.node_defs[node.name])
        copy.device = ""
        if "_class" in copy.attr:
            del copy.attr["_class"]
        del copy.input[:]
        for end in node.inputs:
            copy.input.append(placeholders[end] if end in placeholders else _reference(graph, end))
        copy.input.extend(f"^{graph.nodes[j].name}" for j in node.controls if j in inside and not graph.nodes[j].free)
    return Subgraph(
        result,
        tuple(f"{name}:0" for name in placeholders.values()),
        tuple(graph.tensor(*end).name for end in boundary.outputs),
        tuple(weights),
    )


def _with_constants(graph: Graph, ops: Sequence[int]) -> list[int]:
    wanted = set(ops)
    pending = [j for i in ops for j, _ in graph.nodes[i].inputs if graph.nodes[j].free]
    while pending:
        i = pending.pop()
        if i not in wanted:
            wanted.add(i)
            pending.extend(j for j, _ in graph.nodes[i].inputs)
    return sorted(wanted)


def _reference(graph: Graph, end: End) -> str:
    name = graph.nodes[end[0]].name
    return f"{name}:{end[1]}" if end[1] else name
