"""Grappler's folding, with a graph's large constants kept out of its way.

Grappler and tf2onnx serialise, copy and reload the whole graph many times. Taking the large constants out of it for
that long makes it small (and lifts protobuf's limit of 2 GB); small ones stay, for they decide what can be folded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

_LARGE_BYTES = 64 * 1024
_LOWERED = {"While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase"}


@dataclass(frozen=True, slots=True)
class LightGraph:
    """A GraphDef whose large constants are empty.

    Attributes:
        weights: the large constants' bytes by node name.
        origins: the original nodes behind a node that Grappler turned into something else.
    """

    graph_def: tf.compat.v1.GraphDef
    weights: dict[str, bytes]
    origins: dict[str, frozenset[str]] = field(default_factory=dict)


def lighten(graph_def: tf.compat.v1.GraphDef, fetched: Sequence[str]) -> LightGraph:
    """Copy a GraphDef with Placeholders for its large constants; Identity ops on them are passed by, unless fetched."""
    import tensorflow as tf

    # tf2onnx finds weights by bare node name, in functions too: a name that occurs there must stay as it is.
    ambiguous = {node.name for function in graph_def.library.function for node in function.node_def}
    kept = {name.split(":")[0] for name in fetched}
    light = tf.compat.v1.GraphDef()
    light.versions.CopyFrom(graph_def.versions)
    light.library.CopyFrom(graph_def.library)
    weights: dict[str, bytes] = {}
    alias: dict[str, str] = {}
    for node in graph_def.node:
        if node.op == "Const" and node.name not in ambiguous and node.attr["value"].ByteSize() > _LARGE_BYTES:
            tensor = node.attr["value"].tensor
            if content := tensor.tensor_content:
                weights[node.name] = content
                stand_in = light.node.add(name=node.name, op="Placeholder", device=node.device)
                stand_in.input.extend(node.input)
                stand_in.attr["dtype"].type = tensor.dtype
                stand_in.attr["shape"].shape.CopyFrom(tensor.tensor_shape)
                continue
        light.node.add().CopyFrom(node)
    for nodes in (light.node, *(function.node_def for function in light.library.function)):
        for node in nodes:
            if node.op in _LOWERED:
                # Else Grappler turns them into Switch and Merge, which ONNX does not have.
                node.attr["_lower_using_switch_merge"].b = False
    for node in light.node:
        if node.op == "Identity" and len(node.input) == 1 and node.name not in kept:
            alias[node.name] = node.input[0].removesuffix(":0")
    for node in light.node:
        for index, name in enumerate(node.input):
            source = name.removesuffix(":0")
            while source in alias:
                source = alias[source]
            if source in weights:
                node.input[index] = source
    return LightGraph(light, weights)


def fold(
    light: LightGraph, inputs: Sequence[str], outputs: Sequence[str], absent: Set[str] = frozenset()
) -> LightGraph:
    """Let Grappler fold constants and inline functions; large constants come back as Const nodes without a value.

    A result in which a fetched tensor is gone is not used: the graph stays as it was then.

    Args:
        absent: Placeholders for weights whose values are elsewhere.
    """
    import tensorflow as tf
    from tf2onnx import tf_loader

    # Grappler fills a tensor with zeros for every Placeholder.
    _replace(light.graph_def, absent, "Placeholder", "ImmutableConst")
    with tf.Graph().as_default():
        folded = tf_loader.tf_optimize(list(inputs), list(outputs), light.graph_def)
    for graph_def in (light.graph_def, folded):
        _replace(graph_def, absent, "ImmutableConst", "Placeholder")
    present = {node.name for node in folded.node}
    if not present.issuperset(name.split(":")[0] for name in (*inputs, *outputs)):
        folded = tf.compat.v1.GraphDef()
        folded.CopyFrom(light.graph_def)
    before = {node.name: node for node in light.graph_def.node}
    for node in folded.node:
        if node.name in light.weights and node.op == "Placeholder":
            shape, dtype = node.attr["shape"].shape, node.attr["dtype"].type
            node.op = "Const"
            node.attr["value"].tensor.dtype = dtype
            node.attr["value"].tensor.tensor_shape.CopyFrom(shape)
            del node.attr["shape"]
            node.ClearField("input")
        elif (old := before.get(node.name)) and "_output_shapes" in old.attr and _computes_the_same(old, node):
            node.attr["_output_shapes"].CopyFrom(old.attr["_output_shapes"])
    used = {node.name for node in folded.node if node.op == "Const"}
    kept = {name: value for name, value in light.weights.items() if name in used}
    return LightGraph(folded, kept, _moved(before, folded))


def _replace(graph_def: tf.compat.v1.GraphDef, names: Set[str], old: str, new: str) -> None:
    """Change the op of some nodes, both ops having a dtype, a shape and no input; each stays unlike any other."""
    for node in graph_def.node:
        if node.name in names and node.op == old:
            node.op = new
            if new == "ImmutableConst":
                node.attr["memory_region_name"].s = node.name.encode()
            else:
                del node.attr["memory_region_name"]


def _computes_the_same(old: tf.compat.v1.NodeDef, new: tf.compat.v1.NodeDef) -> bool:
    """Whether a node reads what it read before. Grappler turns (x * c) * y into x * (c * y) under the names of the old
    nodes: the inner one has another shape then, and importing the graph with the old one fails."""
    data = [[name.removesuffix(":0") for name in node.input if name[:1] != "^"] for node in (old, new)]
    return old.op == new.op and data[0] == data[1]


def _moved(before: Mapping[str, tf.compat.v1.NodeDef], folded: tf.compat.v1.GraphDef) -> dict[str, frozenset[str]]:
    """Grappler pushes a multiplication into a convolution's weights by giving the Mul node the convolution's work: such
    a node also comes from the ops of its new type that have vanished upstream of it."""
    present = {node.name for node in folded.node}
    moved: dict[str, frozenset[str]] = {}
    for node in folded.node:
        old = before.get(node.name)
        if old is None or old.op == node.op or node.op in ("Const", "Identity", "NoOp"):
            continue
        todo, seen = list(old.input), {node.name}
        while todo:
            name = todo.pop().lstrip("^").split(":")[0]
            if name not in seen and name not in present and name in before:
                seen.add(name)
                todo += before[name].input
        moved[node.name] = frozenset(name for name in seen if before[name].op == node.op or name == node.name)
    return moved
