"""Which tensors of a graph are its inputs and outputs: given by name, or guessed where that is unambiguous."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from stages.errors import ModelError
from stages.model import close_matches

if TYPE_CHECKING:
    import tensorflow as tf

_NO_RESULT = {
    "Const",
    "IteratorToStringHandle",
    "Placeholder",
    "PlaceholderWithDefault",
    "Print",
    "ReadVariableOp",
    "RestoreV2",
}
_SHAPES = {"Shape", "ShapeN", "Size", "Rank"}
_BRANCH_MARKS = ("switch_t", "switch_f", "pred_id")
"""Identity ops that tf.cond makes for its own use."""


def known(subject: object, names: Iterable[str], nodes: Mapping[str, tf.compat.v1.NodeDef], option: str) -> list[str]:
    """Tensor names in the form `op:0`, each of an op that is there.

    Raises:
        ModelError: one is not; the message names similar ones.
    """
    tensors = []
    for name in names:
        op, _, index = name.partition(":")
        if op not in nodes or (index and not index.isdigit()):
            raise ModelError(f"{subject}: has no tensor {name}", f"{option} with {close_matches(op, nodes)}")
        tensors.append(f"{op}:{index or 0}")
    return tensors


def guess_output(subject: object, graph_def: tf.compat.v1.GraphDef) -> str:
    """The result of the only op whose result nobody reads, training aside.

    Raises:
        ModelError: there is none, or more than one; the message lists them.
    """
    sinks = candidates(graph_def)
    if len(sinks) != 1:
        raise ModelError(
            f"{subject}: has {len(sinks)} ops whose result nobody reads, so its output can't be guessed"
            + (f": {', '.join(sinks[:20])}" if sinks else ""),
            f"--outputs {sinks[-1] if sinks else 'NAME'}:0",
        )
    return f"{sinks[0]}:0"


def candidates(graph_def: tf.compat.v1.GraphDef) -> list[str]:
    """Ops that may compute an output: they have a result that nothing but training (`gradients`, summaries) reads.

    Where some of them depend on an input, the others (an optimiser's variables, what saves) are left out.
    """
    read = {
        reference.lstrip("^").partition(":")[0]
        for node in graph_def.node
        if not _trains(node)
        for reference in node.input
    }
    found = [
        node.name
        for node in graph_def.node
        if node.name not in read
        and node.op not in _NO_RESULT | _SHAPES
        and not _trains(node)
        and not node.name.endswith(_BRANCH_MARKS)
        and _has_result(node)
    ]
    fed = _fed(graph_def)
    return [name for name in found if name in fed] or found


def _fed(graph_def: tf.compat.v1.GraphDef) -> set[str]:
    """The ops that depend on a Placeholder."""
    users: dict[str, list[str]] = {}
    for node in graph_def.node:
        for reference in node.input:
            users.setdefault(reference.lstrip("^").partition(":")[0], []).append(node.name)
    pending = [node.name for node in graph_def.node if node.op == "Placeholder"]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(users.get(name, ()))
    return found


def _trains(node: tf.compat.v1.NodeDef) -> bool:
    return node.op.endswith("Summary") or any(part.startswith("gradients") for part in node.name.split("/")[:-1])


def _has_result(node: tf.compat.v1.NodeDef) -> bool:
    """Whether an op gives a value: not a variable that it has changed, a table or a dataset. Ops that aren't loaded may."""
    import tensorflow as tf
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(node.op)
    handles = (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum)
    return definition is None or any(
        not result.is_ref and result.type not in handles for result in definition.output_arg
    )


def needed(nodes: Mapping[str, tf.compat.v1.NodeDef], fetched: Iterable[str], cut: Iterable[str]) -> set[str]:
    """The ops that the fetched tensors depend on, not looking behind the ops in `cut`."""
    stop = set(cut)
    found: set[str] = set()
    pending = [tensor.partition(":")[0] for tensor in fetched]
    while pending:
        name = pending.pop()
        if name in found or name not in nodes:
            continue
        found.add(name)
        if name not in stop:
            pending.extend(reference.lstrip("^").partition(":")[0] for reference in nodes[name].input)
    return found


def label(tensor: str) -> str:
    """The name of an input or output that is called after its tensor: the op's, with the index where it is not 0."""
    return tensor.removesuffix(":0")
