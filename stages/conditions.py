"""Conditions of branches that are known while converting, such as `is_training` once it is fixed to false."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

_LOGIC = {"Identity", "PlaceholderWithDefault", "Switch", "LogicalNot", "LogicalAnd", "LogicalOr"}


class Conditions:
    """The boolean scalars of one graph whose values are known."""

    def __init__(self, graph_def: tf.compat.v1.GraphDef) -> None:
        self._nodes = {node.name: node for node in graph_def.node}
        self._values: dict[str, bool | None] = {}

    def value(self, reference: str) -> bool | None:
        """A node's input's value; None if it isn't known. A default value counts: nothing else is fed."""
        tensor = reference.removesuffix(":0")
        if tensor not in self._values:
            self._values[tensor] = None  # what depends on itself (a loop's condition) is not known
            self._values[tensor] = self._compute(tensor)
        return self._values[tensor]

    def _compute(self, tensor: str) -> bool | None:
        from tensorflow.python.framework import tensor_util

        node = self._nodes[tensor.partition(":")[0]]
        if node.op == "Const":
            value = tensor_util.MakeNdarray(node.attr["value"].tensor)
            return bool(value) if value.dtype == bool and value.ndim == 0 else None
        if node.op not in _LOGIC:
            return None
        inputs = [self.value(reference) for reference in node.input[:2] if not reference.startswith("^")]
        if node.op == "LogicalNot":
            return None if inputs[0] is None else not inputs[0]
        if node.op == "LogicalAnd":
            return False if False in inputs else (None if None in inputs else True)
        if node.op == "LogicalOr":
            return True if True in inputs else (None if None in inputs else False)
        return inputs[0]


def take_known_branches(graph_def: tf.compat.v1.GraphDef) -> bool:
    """Make every If whose condition is known a call of the branch that it takes, in place; whether there was any."""
    conditions = Conditions(graph_def)
    known = [
        (node, value)
        for node in graph_def.node
        if node.op in ("If", "StatelessIf") and (value := conditions.value(node.input[0])) is not None
    ]
    for node, value in known:
        node.attr["f"].func.CopyFrom(node.attr["then_branch" if value else "else_branch"].func)
        node.op = "PartitionedCall" if node.op == "StatelessIf" else "StatefulPartitionedCall"
        for attribute in ("Tcond", "then_branch", "else_branch", "output_shapes", "_lower_using_switch_merge"):
            node.attr.pop(attribute, None)
        del node.input[0]
    return bool(known)
