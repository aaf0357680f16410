"""What a region in another precision does to the model's outputs.

The converted region runs in ONNX Runtime on the CPU, everything else in TensorFlow, on samples. Regions decided before
stay converted, so that the error is the model's, with all that was chosen so far.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path

from stages.artifacts import Region, Tensor
from stages.compare import Array
from stages.errors import VerifyError
from stages.execute import Session
from stages.graph import Graph
from stages.metrics import Metric, output_error
from stages.profiles import onnx_inputs
from stages.scopes import Call, Scope

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    """One run of the graph: its inputs, what TensorFlow makes of them, and what regions that are decided make of them."""

    inputs: Call
    expected: dict[str, Array]
    replaced: dict[Tensor, Array] = field(default_factory=dict)


class Trial:
    """One graph on samples.

    Of the frozen graph itself all outputs are compared by the metric. A branch's or loop's body, and a graph with state,
    which differs from run to run, is compared where the region ends, by relative error: `whole` is False.

    Args:
        calls: what the graph is run on.

    Raises:
        VerifyError: TensorFlow can't run the graph on one of them.
    """

    def __init__(self, scope: Scope, calls: Sequence[Call], metric: Metric) -> None:
        self._scope = scope
        self.whole = not scope.graph.scope and not any(node.needed and node.stateful for node in scope.graph.nodes)
        self._metric: Metric = metric if self.whole else "relative"
        self._outputs = scope.graph.frozen.outputs
        names = [tensor.name for tensor in self._outputs] if self.whole else []
        self._runs = [_Run(call, scope.reference.run(names, call)) for call in calls]

    def begin(self, region: Region) -> RegionTrial:
        """A region that is to be decided; after those that it depends on.

        Raises:
            VerifyError: TensorFlow can't run the model.
        """
        read = onnx_inputs(region)
        wanted = [tensor.name for _, tensor in read] + ([] if self.whole else [t.name for t in region.outputs])
        inputs = []
        for run in self._runs:
            values = self._scope.reference.run(wanted, run.inputs, run.replaced)
            inputs.append({name: values[tensor.name] for name, tensor in read})
            if not self.whole:
                run.expected = {tensor.name: values[tensor.name] for tensor in region.outputs}
        return RegionTrial(self, region, inputs)

    def error(self, region: Region, results: Sequence[Mapping[Tensor, Array]]) -> float:
        """The error of the graph where the region has these outputs, one mapping for each run.

        Raises:
            VerifyError: the metric can't be had.
        """
        outputs = self._outputs if self.whole else region.outputs
        names = [tensor.name for tensor in outputs]
        actual: list[Mapping[str, Array]] = [
            self._scope.reference.run(names, run.inputs, run.replaced | dict(result))
            if self.whole
            else {tensor.name: value for tensor, value in result.items()}
            for run, result in zip(self._runs, results, strict=True)
        ]
        shown = dict(zip(names, self._scope.graph.frozen.output_names if self.whole else names, strict=True))
        return max(
            (
                output_error(self._metric, shown[n], [run.expected[n] for run in self._runs], [a[n] for a in actual])
                for n in names
            ),
            default=0.0,
        )

    def keep(self, results: Sequence[Mapping[Tensor, Array]]) -> None:
        """Go on with these outputs of a region, which is decided."""
        if self.whole:
            for run, result in zip(self._runs, results, strict=True):
                run.replaced |= result


class RegionTrial:
    """One region of a graph, to be tried in several precisions on the same inputs."""

    def __init__(self, trial: Trial, region: Region, inputs: Sequence[Mapping[str, Array]]) -> None:
        self._trial = trial
        self._region = region
        self.inputs = inputs
        """For each run an array for each input of the region's ONNX model."""

    def run(self, model: Path) -> list[dict[Tensor, Array]]:
        """The region's outputs by an ONNX model of it, for each run.

        Raises:
            VerifyError: ONNX Runtime does not load or run the model.
        """
        session = Session(model, optimise=False)
        names = {f"output_{i}": tensor for i, tensor in enumerate(self._region.outputs)}
        return [
            {names[name]: value for name, value in session.run(inputs, list(names)).items()} for inputs in self.inputs
        ]

    def error(self, model: Path) -> float:
        """The error with this ONNX model; infinite where ONNX Runtime can't run it, or there is nothing to run it on.

        Raises:
            VerifyError: the metric can't be had.
        """
        if not self.inputs:
            return math.inf
        try:
            results = self.run(model)
        except VerifyError as failed:
            log.info("%s: %s", self._region.name, failed.problem)
            return math.inf
        return self._trial.error(self._region, results)

    def keep(self, model: Path) -> None:
        """Go on with this ONNX model of the region."""
        self._trial.keep(self.run(model))


def in_order(graph: Graph, regions: Sequence[Region]) -> list[Region]:
    """Regions of one graph, each behind those that it depends on."""
    owner: dict[int, object] = {
        graph.number[op]: -1 - number for number, region in enumerate(regions) for op in region.ops
    }
    sorter: TopologicalSorter[object] = TopologicalSorter({-1 - number: () for number in range(len(regions))})
    for i, node in enumerate(graph.nodes):
        unit = owner.get(i, i)
        before = (owner.get(j, j) for j in node.predecessors if j < i)  # a loop of TensorFlow 1 goes back
        sorter.add(unit, *(other for other in before if other != unit))
    return [regions[-1 - unit] for unit in sorter.static_order() if isinstance(unit, int) and unit < 0]
