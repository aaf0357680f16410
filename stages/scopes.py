"""The graphs that a model consists of: the frozen graph itself, and the bodies of branches and loops left in TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from stages.artifacts import Region
from stages.bodies import FIRST_ARGUMENT, LOOPS, Body, bodies, condition
from stages.compare import Array
from stages.errors import VerifyError
from stages.graph import Graph
from stages.reference import Reference

if TYPE_CHECKING:
    import tensorflow as tf

MAX_ITERATIONS = 8
"""How far a loop is followed to see what its body is given."""


class Scope:
    """One graph, and what it is run on when the model is run.

    Args:
        parent, body: for the body of a branch or loop, where it is run; else None.
    """

    def __init__(self, graph: Graph, parent: Scope | None = None, body: Body | None = None) -> None:
        self.graph = graph
        self._parent = parent
        self._body = body
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
        for body in bodies(self.graph, taken, constants=True):
            yield Scope(body.graph, self, body)

    def calls(self, sample: Mapping[str, Array]) -> list[Mapping[str, Array | tf.Tensor]]:
        """What this graph's inputs are when the model is run on a sample, by tensor name: once for each call of a branch
        (whether it is taken or not), for the first and the last iteration of a loop (of the first 8).

        Raises:
            VerifyError: TensorFlow can't run the graphs around it, or this one by itself, on the sample.
        """
        if self._parent is None or self._body is None:
            return [sample]
        return [call for outer in self._parent.calls(sample) for call in self._calls(self._body, self._parent, outer)]

    def _calls(
        self, body: Body, parent: Scope, outer: Mapping[str, Array | tf.Tensor]
    ) -> list[Mapping[str, Array | tf.Tensor]]:
        node = parent.graph.nodes[body.call]
        names = [parent.graph.tensor(*end).name for end in node.inputs[FIRST_ARGUMENT[node.op] :]]
        values = parent.reference.tensors(names, outer)
        arguments = [values[name] for name in names]
        if node.op not in LOOPS:
            return [self._inputs(body, arguments)]
        iterations: list[list[tf.Tensor]] = []
        while len(iterations) < MAX_ITERATIONS and self._goes_on(body, parent, arguments):
            iterations.append(arguments)
            results = self.reference.tensors(self._results, self._inputs(body, arguments))
            arguments = [results[name] for name in self._results]
        # A loop that ends before its first iteration still says what its body would be given.
        chosen = [iterations[0], iterations[-1]] if len(iterations) > 1 else [*iterations, arguments][:1]
        return [self._inputs(body, arguments) for arguments in chosen]

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


def usable(scope: Scope, samples: Sequence[Mapping[str, Array]]) -> list[Mapping[str, Array | tf.Tensor]]:
    """What the graph is run on for each of the samples; a branch may refuse what it would not be given.

    Raises:
        VerifyError: TensorFlow can't run it on any.
    """
    if not scope.graph.scope:
        return list(samples)
    results = [tensor.name for tensor in scope.graph.frozen.outputs]
    found: list[Mapping[str, Array | tf.Tensor]] = []
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
