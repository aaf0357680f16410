"""The graphs that a model consists of: the frozen graph itself, and the bodies of branches and loops left in TensorFlow."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from stages.artifacts import Region
from stages.bodies import FIRST_ARGUMENT, LOOPS, Body, Callee, bodies, body_of, callees, condition
from stages.compare import Array
from stages.errors import VerifyError
from stages.graph import Graph
from stages.reference import Reference

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

Call: TypeAlias = "Mapping[str, Array | tf.Tensor]"
"""A value for each input of a graph, by tensor name."""
MAX_ITERATIONS = 8
"""How far a loop is followed to see what its body is given."""


class Scope:
    """One graph, and what it is run on when the model is run.

    Args:
        parent, inner: for the body of a branch or loop, where it is run; else None.
    """

    def __init__(self, graph: Graph, parent: Scope | None = None, inner: Body | None = None) -> None:
        self.graph = graph
        self._parent = parent
        self._body = inner
        self._condition: tuple[Reference, Graph] | None = None

    @cached_property
    def reference(self) -> Reference:
        """TensorFlow's own run of this graph."""
        return Reference(self.graph)

    def close(self) -> None:
        """Drop what TensorFlow holds of the graph."""
        if "reference" in self.__dict__:
            self.reference.close()
            del self.__dict__["reference"]

    def inner(self, regions: Sequence[Region]) -> Iterator[Scope]:
        """The bodies of the branches and loops that none of the regions holds."""
        taken = [name for region in regions for name in region.ops]
        for found in bodies(self.graph, taken, constants=True):
            yield Scope(found.graph, self, found)

    def calls(self, sample: Mapping[str, Array]) -> list[Call]:
        """What this graph's inputs are when the model is run on a sample, by tensor name: once for each call of a branch,
        for the first and the last iteration of a loop (of the first 8). Where it is not run at all: what it would be given.

        Raises:
            VerifyError: TensorFlow can't run the graphs around it, or this one by itself, on the sample.
        """
        if self._parent is None or self._body is None:
            return [sample]
        found: list[Call] = []
        for outer in self._parent.calls(sample):
            found += self.entered(outer) or [self._inputs(self._body, self._arguments(self._body, self._parent, outer))]
        return found

    def entered(self, outer: Call) -> list[Call]:
        """As `calls`, for one run of the graph around this one; none where that does not run it."""
        assert self._parent is not None
        assert self._body is not None
        body, parent = self._body, self._parent
        node = parent.graph.nodes[body.call]
        arguments = self._arguments(body, parent, outer)
        if node.op not in LOOPS:
            name = parent.graph.tensor(*node.inputs[0]).name
            (chooser,) = parent.reference.run([name], outer).values()
            count = len(callees(parent.graph, body.call))
            own = callees(parent.graph, body.call).index(body.callee)
            return [self._inputs(body, arguments)] if _chosen(node.op, chooser, count) == own else []
        iterations: list[list[tf.Tensor]] = []
        while len(iterations) < MAX_ITERATIONS and self._goes_on(body, parent, arguments):
            iterations.append(arguments)
            results = self.reference.tensors(self._results, self._inputs(body, arguments))
            arguments = [results[name] for name in self._results]
        chosen = [iterations[0], iterations[-1]] if len(iterations) > 1 else iterations
        return [self._inputs(body, arguments) for arguments in chosen]

    def untried(self, ops: Iterable[int], calls: Sequence[Call]) -> dict[int, str]:
        """Branches and loops among the ops with a part that none of the runs of this graph runs, each with which: to
        compare them as a whole says nothing about that part. A branch that a constant chooses against never runs.

        Args:
            calls: what this graph is run on.
        """
        found: dict[int, str] = {}
        for i in ops:
            node = self.graph.nodes[i]
            for callee in callees(self.graph, i):
                fixed = node.op not in LOOPS and self.graph.nodes[node.inputs[0][0]].free
                part = self._untried_part(i, callee, calls, fixed)
                if part:
                    found[i] = part
        return found

    def _untried_part(self, i: int, callee: Callee, calls: Sequence[Call], fixed: bool) -> str:
        """What of a function no run runs: all of it, or a part of a branch or loop in it; empty if nothing."""
        name = f"{self.graph.full_name(self.graph.nodes[i].name)}/{callee.label}"
        try:
            inner = body_of(self.graph, i, callee, constants=True)
            scope = Scope(inner.graph, self, inner)
            entered = [call for outer in calls for call in scope.entered(outer)]
            deeper = scope.untried(scope.graph.computing(), entered) if entered else {}
            scope.close()
        except VerifyError as error:
            log.info("%s can't be run by itself: %s", name, error)
            return name
        return next(iter(deeper.values()), "" if entered or fixed else name)

    def _arguments(self, body: Body, parent: Scope, outer: Call) -> list[tf.Tensor]:
        node = parent.graph.nodes[body.call]
        names = [parent.graph.tensor(*end).name for end in node.inputs[FIRST_ARGUMENT[node.op] :]]
        values = parent.reference.tensors(names, outer)
        return [values[name] for name in names]

    def _inputs(self, body: Body, arguments: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        inputs = zip(self.graph.frozen.inputs, body.arguments, strict=True)
        return {tensor.name: arguments[k] for tensor, k in inputs}

    @cached_property
    def _results(self) -> list[str]:
        return [tensor.name for tensor in self.graph.frozen.outputs]

    def _goes_on(self, body: Body, parent: Scope, arguments: Sequence[tf.Tensor]) -> bool:
        """What a loop's condition says."""
        if self._condition is None:
            graph = condition(parent.graph, body.call).graph
            self._condition = Reference(graph), graph
        reference, graph = self._condition
        inputs = {tensor.name: value for tensor, value in zip(graph.frozen.inputs, arguments, strict=True)}
        (answer,) = reference.tensors([tensor.name for tensor in graph.frozen.outputs], inputs).values()
        return bool(answer)


def _chosen(op: str, chooser: Array, count: int) -> int:
    """Which of a branch's functions runs."""
    if op.removeprefix("Stateless") == "Case":
        index = int(chooser)
        return index if 0 <= index < count else count - 1
    return 0 if (bool(chooser) if chooser.ndim == 0 else chooser.size > 0) else 1


def usable(scope: Scope, samples: Sequence[Mapping[str, Array]]) -> list[Call]:
    """What the graph is run on for each of the samples; a branch may refuse what it would not be given.

    Raises:
        VerifyError: TensorFlow can't run it on any.
    """
    if not scope.graph.scope:
        return list(samples)
    results = [tensor.name for tensor in scope.graph.frozen.outputs]
    found: list[Call] = []
    problem: VerifyError | None = None
    for sample in samples:
        try:
            calls = scope.calls(sample)
            for call in calls:
                scope.reference.tensors(results, call)
            found += calls
        except VerifyError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return found
