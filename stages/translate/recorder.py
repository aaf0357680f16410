"""Watches tf2onnx work and stamps every node that it makes with the TensorFlow ops behind it.

Nodes that a handler makes get the op being handled, nodes that a rewriter makes get the ops that it took out for them,
nodes that an optimiser pass makes get what their producers have.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import progress
from stages.translate.library import replaced
from stages.translate.provenance import origin_by_name, tag, tagged

if TYPE_CHECKING:
    from tf2onnx.graph import Graph, Node

_NONE: frozenset[str] = frozenset()
_Mapping = dict[str, tuple[Callable[..., object], object]]


@dataclass(frozen=True, slots=True)
class _Before:
    """A node that a rewriter may take away or rewire."""

    node: Node
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Recorder:
    """Stamps the nodes that tf2onnx makes during one conversion.

    Args:
        names: names of all nodes of the TF graph that is converted, functions included.
        origins: the nodes of the graph as it was before Grappler, for those of `names` that come from others.
    """

    def __init__(self, names: AbstractSet[str], origins: Mapping[str, frozenset[str]]) -> None:
        self._names = names
        self._origins = origins
        self._known: dict[str, frozenset[str]] = {}
        self._handled: frozenset[str] = _NONE
        self._made: list[Node] | None = None
        self._converting = False
        self._handled_count = 0

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Watch tf2onnx for the length of a block."""
        from tf2onnx import tfonnx
        from tf2onnx.graph import Graph
        from tf2onnx.handler import tf_op

        with (
            replaced(Graph, "make_node", self._watched_make_node(Graph.make_node)),
            replaced(tf_op, "create_mapping", staticmethod(self._watched_mapping(tf_op.create_mapping))),
            replaced(tfonnx, "run_rewriters", self._watched_rewriters(tfonnx.run_rewriters)),
        ):
            yield

    def origins_of(self, name: str) -> frozenset[str]:
        """The TF ops behind the node that has, or had, this name in tf2onnx's graph."""
        return self._known.get(name) or self._origins.get(name) or frozenset((name,))

    def stamp_rest(self, graph: Graph) -> None:
        """Stamp what no handler saw: nodes that a rewriter converted in place."""
        for node in graph.get_nodes():
            if not node.is_const() and not tagged(node.op):
                self._stamp(node, self._of(graph, node))
            for body in (node.get_body_graphs() or {}).values():
                self.stamp_rest(body)

    def _watched_make_node(self, make_node: Callable[..., Node]) -> Callable[..., Node]:
        @functools.wraps(make_node)
        def watched(graph: Graph, *args: object, **kwargs: object) -> Node:
            node = make_node(graph, *args, **kwargs)
            if self._handled:
                self._stamp(node, self._handled)
            elif node.name in self._known:
                self._stamp(node, self._known[node.name])
            elif self._made is not None:
                self._made.append(node)
            elif self._converting and node.type != "Const":
                self._stamp(node, self._of(graph, node))
            return node

        return watched

    def _watched_mapping(self, create_mapping: Callable[..., _Mapping]) -> Callable[..., _Mapping]:
        def watch(handler: Callable[..., object]) -> Callable[..., object]:
            @functools.wraps(handler)
            def watched(graph: Graph, node: Node, **kwargs: object) -> object:
                self._handled_count += 1
                progress.report(self._handled_count, len(self._names), f"{self._handled_count} ops translated")
                outer = self._handled
                self._handled = self._of(graph, node)
                self._stamp(node, self._handled)
                try:
                    return handler(graph, node, **kwargs)
                finally:
                    self._handled = outer

            return watched

        @functools.wraps(create_mapping)
        def mapping(*args: object) -> _Mapping:
            # Only from here on are nodes derived from others: before, the graph is read in under TensorFlow's names.
            self._converting = True
            return {op: (watch(handler), options) for op, (handler, options) in create_mapping(*args).items()}

        return mapping

    def _watched_rewriters(self, run_rewriters: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run_rewriters)
        def watched(graph: Graph, rewriters: Sequence[Callable[..., object]], continue_on_error: object) -> None:
            for rewriter in rewriters:
                before = {node.name: _Before(node, tuple(node.input), tuple(node.output)) for node in graph.get_nodes()}
                outer = self._made
                made: list[Node] = []
                self._made = made
                try:
                    run_rewriters(graph, [rewriter], continue_on_error)
                finally:
                    self._made = outer
                if outer is not None:  # inside a body graph: the rewriter of the graph around it is still at work
                    outer.extend(made)
                self._attribute(graph, before, made)

        return watched

    def _attribute(self, graph: Graph, before: Mapping[str, _Before], new: Iterable[Node]) -> None:
        """Stamp the nodes that a rewriter made with the ops behind those that it took out for them."""
        made = {node.name: node for node in new}
        if not made:
            return
        remaining = {node.name for node in graph.get_nodes()}
        removed = {name for name in before if name not in remaining or name in made}
        producers = {output: name for name, node in before.items() for output in node.outputs}
        for name in made.keys() & remaining:
            if name in before:
                self._stamp(made[name], self._own(before[name].node))
                continue
            todo = [producers[output] for output in made[name].output if output in producers] or list(removed)
            seen: set[str] = set()
            while todo:
                if (last := todo.pop()) not in seen:
                    seen.add(last)
                    sources = (producers.get(tensor, "") for tensor in before[last].inputs)
                    todo += [source for source in sources if source in removed]
            found = _NONE.union(*(self._own(before[old].node) for old in seen))
            self._stamp(made[name], found or self._of(graph, made[name]))

    def _stamp(self, node: Node, names: frozenset[str]) -> None:
        if names:
            tag(node.op, names)
            self._known[node.name] = names

    def _own(self, node: Node) -> frozenset[str]:
        if found := tagged(node.op):
            return found
        return self._origins.get(node.name) or (frozenset((node.name,)) if node.name in self._names else _NONE)

    def _of(self, graph: Graph, node: Node) -> frozenset[str]:
        if found := self._own(node):
            return found
        producers = (graph.get_node_by_output(tensor) for tensor in node.input if tensor)
        found = _NONE.union(*(self._own(producer) for producer in producers if producer and not producer.is_const()))
        return found or _NONE.union(*map(self.origins_of, origin_by_name(node.name, self._names)))
