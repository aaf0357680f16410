"""What one signature of a TensorFlow 1 graph takes, gives and needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.artifacts import Tensor
from stages.errors import ModelError
from stages.importing import import_graph, trace_as_it_is
from stages.signature_defs import argument_names

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature's own names for tensors of the graph (any tensor can be fed)."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a graph that a signature needs. Its inputs are Placeholders, as are the `state` nodes' copies.

    Attributes:
        placeholders: input name to the Placeholder tensor for it.
        outputs: output name to the tensor in `graph_def`.
        state: names of the nodes that hold a variable or table.
    """

    graph_def: tf.compat.v1.GraphDef
    placeholders: Mapping[str, str]
    outputs: Mapping[str, str]
    state: tuple[str, ...]


STATE = {"VarHandleOp", "HashTableV2", "MutableHashTableV2", "MutableHashTableOfTensorsV2", "MutableDenseHashTableV2"}
"""Ops that hold something from one run to the next, and that `state.py` makes anew."""


def cut_out(graph_def: tf.compat.v1.GraphDef, signature: Signature, subject: str) -> Piece:
    """Copy what the outputs depend on, not looking behind the inputs.

    Raises:
        ModelError: a tensor of the signature is not in the graph, or the outputs need a Placeholder that is no input.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node}
    for named in (*(tensor.name for tensor in signature.inputs.values()), *signature.outputs.values()):
        if named.partition(":")[0] not in nodes:
            raise ModelError(f"{subject}: its signature names {named}, which is not in its graph", "save it again")
    fed: dict[str, str] = {}
    placeholders: dict[str, str] = {}
    for number, (name, tensor) in enumerate(signature.inputs.items()):
        placeholders[name] = fed.setdefault(_long(tensor.name), f"graftrt/inputs/{number}")
    needed = _needed(nodes, signature.outputs.values(), fed)
    missing = sorted(name for name in needed if nodes[name].op == "Placeholder")
    if missing:
        raise ModelError(
            f"{subject}: its outputs depend on {', '.join(missing)}, which the signature doesn't feed",
            f"--inputs with {', '.join(missing)} too, or --constant {missing[0]}=VALUE",
        )
    piece = tf.compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    for name, tensor in signature.inputs.items():
        if fed[_long(tensor.name)] == placeholders[name]:
            node = piece.node.add(name=placeholders[name], op="Placeholder")
            node.attr["dtype"].type = tf.as_dtype(tensor.dtype).as_datatype_enum
    state = []
    for node in graph_def.node:
        if node.name not in needed:
            continue
        copy = piece.node.add()
        copy.CopyFrom(node)
        del copy.input[:]
        copy.input.extend(
            fed.get(_long(reference), reference)
            for reference in node.input
            if not reference.startswith("^") or reference[1:] in needed
        )
        if node.op in STATE:
            state.append(node.name)
            copy.op = "Placeholder"
            del copy.input[:]
            copy.attr.clear()
            copy.attr["dtype"].type = tf.resource.as_datatype_enum
    outputs = {name: _long(fed.get(_long(result), result)) for name, result in signature.outputs.items()}
    return Piece(piece, {name: f"{node}:0" for name, node in placeholders.items()}, outputs, tuple(state))


def _needed(nodes: Mapping[str, tf.compat.v1.NodeDef], outputs: Iterable[str], fed: Mapping[str, str]) -> set[str]:
    """The nodes that the outputs depend on. What waits for a fed Placeholder waits for nothing."""
    fed_nodes = {tensor.partition(":")[0] for tensor in fed}
    pending = [tensor for tensor in outputs if _long(tensor) not in fed]
    found: set[str] = set()
    while pending:
        reference = pending.pop()
        name = reference.lstrip("^").partition(":")[0]
        if name in found or (reference.startswith("^") and name in fed_nodes and nodes[name].op == "Placeholder"):
            continue
        found.add(name)
        if nodes[name].op not in STATE:
            pending.extend(reference for reference in nodes[name].input if _long(reference) not in fed)
    return found


def make_function(
    piece: Piece, signature: Signature, handles: Mapping[str, tf.Tensor]
) -> tf.types.experimental.ConcreteFunction:
    """A piece as a function, its results named as the signature has them, and its inputs as `argument_names` says.

    Nothing is added to the order of its ops: TensorFlow 1 graphs say themselves what waits for what.

    Args:
        handles: for each state node of the piece the resource that it is now.
    """
    import tensorflow as tf

    names = argument_names(signature.inputs)
    captured = {f"{node}:0": handles[node] for node in piece.state}

    def serve(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        tensors = {piece.placeholders[name]: tensor for name, tensor in zip(names, arguments, strict=True)}
        results = import_graph(piece.graph_def, tensors | captured, list(piece.outputs.values()))
        return dict(zip(piece.outputs, results, strict=True))

    specs = [
        tf.TensorSpec(signature.inputs[name].shape, signature.inputs[name].dtype, name=argument)
        for name, argument in names.items()
    ]
    return trace_as_it_is(serve, specs, list(names.values()))


def _long(reference: str) -> str:
    return reference if ":" in reference or reference.startswith("^") else f"{reference}:0"
