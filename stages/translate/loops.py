"""Loops that count to a bound, told how often they run at most.

TensorRT must know the length of what a loop collects, and takes it from the loop's trip limit. tf2onnx takes that from the
loop's second variable, which `tf.while_loop` sets only where it is asked to (`maximum_iterations`); else it is -1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.function_pb2 import FunctionDef

_LIMIT = 1
"""Position of the largest number of iterations among the variables of what `tf.while_loop` makes."""


def limit_trips(graph_def: tf.compat.v1.GraphDef) -> None:
    """Set the limit of every loop of the graph that has none but runs while `i < n`, with `i` counting from 0 in steps of
    1 and an `n` that the loop does not change. Changes the graph in place; what the loop computes stays the same."""
    functions = {function.signature.name: _Function(function) for function in graph_def.library.function}
    nodes = {node.name: node for node in graph_def.node}
    read = {reference.removesuffix(":0") for node in graph_def.node for reference in node.input}
    for node in list(graph_def.node):
        if node.op not in ("While", "StatelessWhile") or f"{node.name}:{_LIMIT}" in read:
            continue
        condition, body = (functions.get(node.attr[name].func.name) for name in ("cond", "body"))
        if condition is None or body is None or not _unlimited(node, nodes, body):
            continue
        for bound in _bounds(node, nodes, condition, body):
            name = f"{node.name}/graftrt_trip_limit"
            while name in nodes:
                name += "_"
            limit = graph_def.node.add()
            limit.CopyFrom(bound)
            limit.name = name
            node.input[_LIMIT] = name
            break


class _Function:
    """A function's nodes and arguments, and what its tensors are copies of."""

    def __init__(self, function: FunctionDef) -> None:
        self.arguments = [argument.name for argument in function.signature.input_arg]
        self.results = [function.ret[result.name] for result in function.signature.output_arg]
        self._nodes = {node.name: node for node in function.node_def}
        self._read = [reference for node in function.node_def for reference in node.input]

    def argument(self, reference: str) -> int | None:
        """The position of the argument that a tensor is; None for any other."""
        name = self._source(reference)
        return self.arguments.index(name) if name in self.arguments else None

    def node(self, reference: str) -> tf.compat.v1.NodeDef | None:
        """The node that makes a tensor; None for an argument."""
        return self._nodes.get(self._source(reference))

    def only_passes(self, position: int) -> bool:
        """Whether an argument is returned at its own position, and read nowhere else."""
        name = self.arguments[position]
        readers = [node for node in self._nodes.values() if name in node.input]
        return self.argument(self.results[position]) == position and all(node.op == "Identity" for node in readers)

    def _source(self, reference: str) -> str:
        name = reference.partition(":")[0]
        while name in self._nodes and self._nodes[name].op == "Identity":
            name = self._nodes[name].input[0].partition(":")[0]
        return name


def _unlimited(node: tf.compat.v1.NodeDef, nodes: dict[str, tf.compat.v1.NodeDef], body: _Function) -> bool:
    return (
        len(node.input) > _LIMIT
        and _integer(nodes.get(node.input[_LIMIT].removesuffix(":0"))) == -1
        and body.only_passes(_LIMIT)
    )


def _bounds(
    node: tf.compat.v1.NodeDef, nodes: dict[str, tf.compat.v1.NodeDef], condition: _Function, body: _Function
) -> Iterator[tf.compat.v1.NodeDef]:
    """Nodes that compute a bound of the loop, without names."""
    for counter, bound in _comparisons(condition, condition.results[0]):
        i = condition.argument(counter)
        if i is None or not _counts(node, nodes, body, i):
            continue
        k = condition.argument(bound)
        if k is None:
            constant = condition.node(bound)
            if _integer(constant) is not None:
                assert constant is not None
                yield constant
        elif body.argument(body.results[k]) == k and node.attr["T"].list.type[k] == _int32():
            # A node of its own: tf2onnx changes the limit's type in place.
            source = nodes.get(node.input[k].removesuffix(":0"))
            if _integer(source) is not None:
                assert source is not None
                yield source
            else:
                identity = type(node)(op="Identity", input=[node.input[k]])
                identity.attr["T"].type = _int32()
                yield identity


def _comparisons(condition: _Function, reference: str) -> Iterator[tuple[str, str]]:
    """The operands of every `a < b` without which the condition does not hold."""
    node = condition.node(reference)
    if node is None:
        return
    if node.op == "Less":
        yield node.input[0], node.input[1]
    elif node.op == "LogicalAnd":
        for operand in node.input[:2]:
            yield from _comparisons(condition, operand)


def _counts(node: tf.compat.v1.NodeDef, nodes: dict[str, tf.compat.v1.NodeDef], body: _Function, i: int) -> bool:
    """Whether a variable of the loop goes 0, 1, 2, …"""
    step = body.node(body.results[i])
    if step is None or step.op not in ("Add", "AddV2") or _integer(nodes.get(node.input[i].removesuffix(":0"))) != 0:
        return False
    operands = [reference for reference in step.input if not reference.startswith("^")]
    return any(
        body.argument(value) == i and _integer(body.node(one)) == 1 for value, one in (operands, reversed(operands))
    )


def _integer(node: tf.compat.v1.NodeDef | None) -> int | None:
    """The value of an int32 constant with one element."""
    import tensorflow as tf

    if node is None or node.op != "Const" or node.attr["dtype"].type != _int32():
        return None
    value = tf.make_ndarray(node.attr["value"].tensor)
    return int(value) if value.ndim == 0 else None


def _int32() -> int:
    import tensorflow as tf

    return int(tf.int32.as_datatype_enum)
