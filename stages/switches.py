"""Fold TensorFlow 1 branches whose condition is a constant, such as `is_training` once it is fixed to false.

A Switch hands its value to one of two sides, what depends on the other side is dead and does not run, and a Merge takes
the side that is alive. Where the condition is known all three can go, and the training side with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.conditions import Conditions
from stages.errors import FreezeError

if TYPE_CHECKING:
    import tensorflow as tf

_MERGES = {"Merge", "RefMerge"}


def fold_switches(graph_def: tf.compat.v1.GraphDef, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Fold in place: a Switch or Merge becomes an Identity of the same name, and dead nodes are removed.

    Returns:
        Where the `outputs` are now.

    Raises:
        FreezeError: one of the outputs would never be computed.
    """
    folding = _Folding(graph_def)
    if not folding.dead_tensors or folding.index_is_read_of_a_merge_that_stays():
        return outputs
    for output in outputs:
        if folding.is_dead(output.removesuffix(":0")):
            raise FreezeError(f"{output}: is never computed, given the constants", "choose other --outputs")
    renamed = folding.apply()
    return tuple(_long(renamed.get(_plain(output), output)) for output in outputs)


class _Folding:
    """What is dead in one graph."""

    def __init__(self, graph_def: tf.compat.v1.GraphDef) -> None:
        self._graph_def = graph_def
        self._nodes = {node.name: node for node in graph_def.node}
        self._users: dict[str, list[tf.compat.v1.NodeDef]] = {}
        for node in graph_def.node:
            for reference in node.input:
                self._users.setdefault(reference.lstrip("^").partition(":")[0], []).append(node)
        conditions = Conditions(graph_def)
        self._sides = {
            node.name: side
            for node in graph_def.node
            if node.op == "Switch" and (side := conditions.value(node.input[1])) is not None
        }
        """The side that each Switch with a known condition takes."""
        self.dead_tensors = {name if side else f"{name}:1" for name, side in self._sides.items()}
        self._dead_nodes: set[str] = set()
        self._propagate()

    def is_dead(self, reference: str) -> bool:
        """Whether a node's input, or another tensor, is dead."""
        name = reference.lstrip("^").partition(":")[0]
        return name in self._dead_nodes or (not reference.startswith("^") and reference in self.dead_tensors)

    def index_is_read_of_a_merge_that_stays(self) -> bool:
        """Whether folding would renumber the inputs of a Merge that tells somebody which of them it took."""
        return any(
            any(f"{node.name}:1" in user.input for user in self._users.get(node.name, ()))
            for node in self._graph_def.node
            if node.op in _MERGES and 1 < len(self._alive(node)) < len(_data(node))
        )

    def apply(self) -> dict[str, str]:
        """Rewrite the graph; returns the new names of tensors that have one."""
        kept = [node for node in self._graph_def.node if node.name not in self._dead_nodes]
        chosen = {f"{name}:1": name for name, side in self._sides.items() if side}
        indices: list[tuple[str, int]] = []
        for node in kept:
            if node.op in _MERGES:
                indices.extend(self._fold_merge(node))
            elif node.name in self._sides:
                controls = [reference for reference in node.input[1:] if reference.startswith("^")]
                node.op = "Identity"
                node.input[:] = [node.input[0], *controls]
                node.attr.pop("_output_shapes", None)
        renamed = chosen | {f"{name}:1": f"{name}/graftrt_value_index" for name, _ in indices}
        for node in kept:
            node.input[:] = [renamed.get(reference, reference) for reference in node.input]
        del self._graph_def.node[:]
        self._graph_def.node.extend(kept)
        for name, index in indices:
            self._add_index(f"{name}/graftrt_value_index", index)
        return renamed

    def _fold_merge(self, node: tf.compat.v1.NodeDef) -> list[tuple[str, int]]:
        """Drop the dead inputs of a Merge; returns its name and the input's number if only one is left."""
        data, alive = _data(node), self._alive(node)
        controls = [reference for reference in node.input[len(data) :] if not self.is_dead(reference)]
        node.input[:] = [*alive, *controls]
        node.attr["N"].i = len(alive)
        if len(alive) == len(data) or len(alive) > 1:
            return []
        node.op = "Identity"
        node.attr.pop("N")
        node.attr.pop("_output_shapes", None)
        return [(node.name, data.index(alive[0]))]

    def _alive(self, node: tf.compat.v1.NodeDef) -> list[str]:
        return [reference for reference in _data(node) if not self.is_dead(reference)]

    def _add_index(self, name: str, index: int) -> None:
        import tensorflow as tf
        from tensorflow.python.framework import tensor_util

        node = self._graph_def.node.add(name=name, op="Const")
        node.attr["dtype"].type = tf.int32.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(index, tf.int32, ()))

    def _propagate(self) -> None:
        pending = [tensor.partition(":")[0] for tensor in self.dead_tensors]
        while pending:
            for user in self._users.get(pending.pop(), ()):
                if user.name not in self._dead_nodes and self._dies(user):
                    self._dead_nodes.add(user.name)
                    pending.append(user.name)

    def _dies(self, node: tf.compat.v1.NodeDef) -> bool:
        if node.op not in _MERGES:
            return any(self.is_dead(reference) for reference in node.input)
        # A loop that is never entered never comes round either.
        entries = [reference for reference in _data(node) if not self._comes_round(reference)]
        return all(self.is_dead(reference) for reference in entries)

    def _comes_round(self, reference: str) -> bool:
        return bool(self._nodes[reference.partition(":")[0]].op == "NextIteration")


def _data(node: tf.compat.v1.NodeDef) -> list[str]:
    return [_plain(reference) for reference in node.input if not reference.startswith("^")]


def _plain(reference: str) -> str:
    return reference.removesuffix(":0")


def _long(reference: str) -> str:
    return reference if ":" in reference else f"{reference}:0"
