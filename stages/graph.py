"""A frozen graph as numbered nodes in topological order: what splitting and stitching ask of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.artifacts import FrozenGraph, Tensor
from stages.errors import SplitError
from stages.library import attribute_functions, reachable_functions

if TYPE_CHECKING:
    import tensorflow as tf

FUNCTION_OPS = frozenset(
    {
        "While",
        "StatelessWhile",
        "If",
        "StatelessIf",
        "Case",
        "StatelessCase",
        "PartitionedCall",
        "StatefulPartitionedCall",
    }
)
_NEVER_FREE = frozenset({"PreventGradient", "Placeholder", "PlaceholderWithDefault"}) | FUNCTION_OPS


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `inputs` are (node number, output number) pairs, `controls` the nodes that it waits for; `stateful` looks into the
    functions that the node calls; `conditional` says that it lies in a TF 1 conditional branch or loop frame."""

    name: str
    op: str
    inputs: tuple[tuple[int, int], ...]
    controls: tuple[int, ...]
    outputs: tuple[Tensor, ...]
    stateful: bool
    free: bool
    needed: bool
    conditional: bool

    @property
    def predecessors(self) -> tuple[int, ...]:
        return (*(source for source, _ in self.inputs), *self.controls)


class Graph:
    """The nodes of a frozen graph, or of the body of one of its branches or loops, numbered in topological order.

    A node is *free* if it is a constant or a pure function of constants: it is cloned where it is used, and is never
    on a boundary. A node is *needed* if an output or a side effect depends on it.

    Args:
        frozen: the graph; for a body (`bodies.py`) with the body's interface.
        graph_def: a body's nodes, else None.
        scope: the body's path, as `while/body`; empty for the frozen graph itself.
        caller: name of the node that runs the body.
    """

    def __init__(
        self,
        frozen: FrozenGraph,
        graph_def: tf.compat.v1.GraphDef | None = None,
        *,
        scope: str = "",
        caller: str = "",
    ) -> None:
        self.frozen = frozen
        self.scope = scope
        self.graph_def = frozen.graph_def() if graph_def is None else graph_def
        self.library = {function.signature.name: function for function in self.graph_def.library.function}
        self.weights = {weight.node: weight for weight in frozen.weights}
        self.node_defs = {node.name: node for node in self.graph_def.node}
        self._prefix = _prefix(caller, self.node_defs)
        self.nodes = self._index()
        self.number = {node.name: i for i, node in enumerate(self.nodes)}
        self.consumers: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        """Per node: (consumer, output number that it reads)."""
        for i, node in enumerate(self.nodes):
            for source, k in node.inputs:
                self.consumers[source].append((i, k))
        self.fetched = frozenset(
            (self.number[tensor.name.rsplit(":", 1)[0]], int(tensor.name.rsplit(":", 1)[1]))
            for tensor in frozen.outputs
        )

    def computing(self) -> list[int]:
        """The nodes that a report counts: needed ones that compute something from the inputs."""
        idle = ("NoOp", "Placeholder", "PlaceholderWithDefault")
        return [
            i
            for i, node in enumerate(self.nodes)
            if node.needed
            and not node.free
            and node.op not in idle
            # A constant inside a TensorFlow 1 frame waits for the frame, so that it is not free; it computes nothing.
            and not (node.op == "Const" and node.conditional)
        ]

    def full_name(self, node: str) -> str:
        """A node's name in the whole model: `while/body/conv` for `while/conv` in the body of `while`."""
        short = node.removeprefix(self._prefix)
        if short in self.node_defs:
            short = node
        return f"{self.scope}/{short}" if self.scope else node

    def tensor(self, source: int, output: int) -> Tensor:
        return self.nodes[source].outputs[output]

    def library_for(self, ops: Iterable[str]) -> tf.compat.v1.GraphDef:
        """An empty GraphDef with the versions of this graph and the functions that the given nodes call."""
        import tensorflow as tf

        result = tf.compat.v1.GraphDef()
        result.versions.CopyFrom(self.graph_def.versions)
        result.library.function.extend(reachable_functions((self.node_defs[op] for op in ops), self.library))
        return result

    def _index(self) -> list[Node]:
        import tensorflow as tf

        imported = tf.Graph()
        with imported.as_default():
            tf.graph_util.import_graph_def(self.graph_def, name="")
        operations = {op.name: op for op in imported.get_operations()}
        sources = {
            name: [*(t.op.name for t in op.inputs), *(c.name for c in op.control_inputs)]
            for name, op in operations.items()
        }
        order = _topological(sources, {name: op.type for name, op in operations.items()})
        number = {name: i for i, name in enumerate(order)}
        needed = _reachable(
            [t.name.split(":")[0] for t in self.frozen.outputs] + list(self.frozen.side_effects), sources
        )
        user_inputs = {tensor.name.split(":")[0] for tensor in self.frozen.inputs}
        nodes: list[Node] = []
        depth: list[int] = []
        for name in order:
            op = operations[name]
            inputs = tuple((number[t.op.name], t.value_index) for t in op.inputs)
            waited_for = [number[source] for source in _waited_for(op)]
            controls = tuple(j for j in waited_for if j >= len(nodes) or not nodes[j].free)
            stateful = self._stateful(op.node_def, op.op_def.is_stateful, frozenset())
            known = [depth[j] for j in (*(source for source, _ in inputs), *controls) if j < len(depth)]
            depth.append(_depth(op.type, {t.op.type for t in op.inputs}, max(known, default=0)))
            free = name in self.weights or (
                op.type not in _NEVER_FREE
                and name not in user_inputs
                and not stateful
                and not controls
                and depth[-1] == 0
                and (op.type == "Const" or bool(inputs))
                and all(j < len(nodes) and nodes[j].free for j, _ in inputs)
            )
            nodes.append(
                Node(
                    name,
                    op.type,
                    inputs,
                    controls,
                    tuple(_tensor(t) for t in op.outputs),
                    stateful,
                    free,
                    name in needed,
                    depth[-1] > 0,
                )
            )
        return nodes

    def _stateful(self, node: tf.compat.v1.NodeDef, declared: bool, above: frozenset[str]) -> bool:
        if node.op not in FUNCTION_OPS:
            return declared
        for called in attribute_functions(node):
            if called in above or called not in self.library:
                return True
            for inner in self.library[called].node_def:
                if self._stateful(inner, _declared_stateful(inner.op), above | {called}):
                    return True
        return False


def _prefix(caller: str, names: Iterable[str]) -> str:
    """How TensorFlow begins the names of a body's nodes: with the caller's name, or with what the caller was called before
    it was inlined."""
    parts = caller.split("/")
    prefixes = ["/".join(parts[start:]) + "/" for start in range(len(parts))]
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)), "")


def is_placeholder(op: str) -> bool:
    return op in ("Placeholder", "PlaceholderWithDefault")


def _declared_stateful(op: str) -> bool:
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(op)
    return definition is None or bool(definition.is_stateful)


def _tensor(tensor: tf.Tensor) -> Tensor:
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return Tensor(tensor.name, tensor.dtype.base_dtype.name, shape)


def _waited_for(op: tf.Operation) -> list[str]:
    """The control inputs of an op, with those of a NoOp in its place: it only joins them, and would part regions."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    pending = list(op.control_inputs)
    while pending:
        source = pending.pop()
        if source.type != "NoOp":
            found[source.name] = None
        elif source.name not in seen:
            seen.add(source.name)
            pending.extend(source.control_inputs)
    return sorted(found)


def _depth(op: str, input_ops: set[str], inherited: int) -> int:
    """How many TF 1 conditionals and loop frames surround a node, from those around its inputs."""
    in_loop = bool(input_ops & {"LoopCond", "Enter", "RefEnter", "NextIteration", "RefNextIteration"})
    if op in ("Enter", "RefEnter") or (op in ("Switch", "RefSwitch") and not in_loop):
        return inherited + 1
    if op in ("Exit", "RefExit") or (op in ("Merge", "RefMerge") and not in_loop):
        return max(inherited - 1, 0)
    return inherited


def _reachable(roots: list[str], sources: dict[str, list[str]]) -> set[str]:
    seen: set[str] = set()
    pending = list(roots)
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending.extend(sources[name])
    return seen


def _topological(sources: dict[str, list[str]], types: dict[str, str]) -> list[str]:
    """Kahn's order; the back edge of a TF 1 loop (NextIteration into Merge) does not count."""
    consumers: dict[str, list[str]] = {name: [] for name in sources}
    missing: dict[str, int] = {}
    for name, before in sources.items():
        real = [b for b in before if not (types[name] == "Merge" and types[b] == "NextIteration")]
        missing[name] = len(real)
        for b in real:
            consumers[b].append(name)
    ready = deque(name for name, count in missing.items() if count == 0)
    order: list[str] = []
    while ready:
        name = ready.popleft()
        order.append(name)
        for consumer in consumers[name]:
            missing[consumer] -= 1
            if missing[consumer] == 0:
                ready.append(consumer)
    if len(order) != len(sources):
        stuck = sorted(set(sources) - set(order))[:3]
        raise SplitError(
            f"the graph has a cycle through {', '.join(stuck)}", "export the model again; it can't run as it is"
        )
    return order
