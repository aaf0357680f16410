"""The precisions of every region of a partition."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from stages import onnx_files, progress
from stages.artifacts import Choice, KeptHigher, Partition, Region, layer_of
from stages.autoprecision.mixed import mixed, rounded
from stages.autoprecision.search import Assignment, Found, KeptLayer, Layer, search
from stages.autoprecision.trial import RegionTrial, Trial, in_order
from stages.calibrating import Ranges, scopes_of
from stages.compare import TOLERANCES, Array
from stages.errors import BuildError, VerifyError
from stages.metrics import Metric, check_metric
from stages.precision import Range
from stages.scopes import Call, Scope, usable
from stages.work import estimate_work

log = logging.getLogger(__name__)

LADDER = ("int8", "fp16", "fp32")
"""The fastest first. int8 needs ranges from samples; fp8 and bf16 are taken only where they are asked for by name."""


@dataclass(frozen=True, slots=True)
class AutoOptions:
    """What `precision="auto"` searches by.

    Attributes:
        samples: inputs of the model by tensor name.
        metric, limit: the largest error of the model's outputs, with all regions as chosen.
        choices: what an earlier search found, one for each region: there is no other then.
        drawn: the samples are random; choices say so.
    """

    samples: Sequence[Mapping[str, Array]] = ()
    metric: Metric = "relative"
    limit: float = TOLERANCES["auto"]
    choices: tuple[Choice, ...] = ()
    drawn: bool = False


def choose(partition: Partition, options: AutoOptions, ranges: Ranges, *, scratch: Path) -> tuple[Choice, ...]:
    """Search the precisions of each region, one after the other in the order in which they run.

    Args:
        ranges: of tensors; regions that have none are not quantised.
        scratch: folder for passing copies of models.

    Raises:
        VerifyError: there is no such metric, the limit is not positive, TensorFlow can't run the model on the samples, or
            the metric can't be had.
    """
    check_metric(options.metric)
    if not options.limit > 0:
        raise VerifyError(f"auto: the largest error {options.limit} leaves room for nothing", "--max-error above 0")
    if options.choices:
        return options.choices
    found: dict[str, Choice] = {}
    with ExitStack() as stack:
        for scope, regions in scopes_of(partition, stack):
            if regions:
                chooser = _Chooser(scope, usable(scope, options.samples), options, ranges, scratch)
                for region in in_order(scope.graph, regions):
                    progress.report(len(found), len(partition.regions), region.name)
                    found[region.name] = chooser.choose(region)
    return tuple(found[region.name] for region in partition.regions)


class _Chooser:
    """Chooses for the regions of one graph."""

    def __init__(
        self, scope: Scope, calls: Sequence[Call], options: AutoOptions, ranges: Ranges, scratch: Path
    ) -> None:
        self._trial = Trial(scope, calls, options.metric)
        # Where only the region's own outputs can be compared, it is by relative error, whatever the metric.
        whole = self._trial.whole or options.metric == "relative"
        self._limit = options.limit if whole else TOLERANCES["fp16"]
        self._notes = ["judged on random inputs, not --samples"] if options.drawn else []
        if not self._trial.whole:
            self._notes.append("compared where the region ends, by relative error")
        self._error = 0.0
        """Of the model with the regions chosen so far."""
        self._ranges = ranges
        self._scratch = scratch
        sizes = {} if scope.graph.scope else {name: array.shape for name, array in calls[0].items()}
        self._work = {name: work.flops for name, work in estimate_work(scope.graph, sizes).items()}

    def choose(self, region: Region) -> Choice:
        candidate = _Candidate(region, *self._ranges.of_region(region), self._trial.begin(region), self._scratch)
        layers: dict[str, list[str]] = {}
        for op in region.ops:
            layers.setdefault(layer_of(op), []).append(op)
        weighed = [Layer(name, sum(self._work.get(op, 0) for op in ops) or 1) for name, ops in layers.items()]
        ladder = LADDER if candidate.ranges or candidate.fixed else LADDER[1:]
        found = search(weighed, ladder, lambda assignment: candidate.error(layers, assignment), self._limit)
        choice = _choice(region, layers, found, ladder)
        if "int8" in found.precisions.values():
            higher = {name: "fp16" if p == "int8" else p for name, p in found.precisions.items()}
            if candidate.error(layers, higher) <= self._limit:
                choice = replace(choice, without_int8=_by_precision(layers, higher))
            choice = replace(choice, evaluations=choice.evaluations + 1)
        if found.error is not None and self._trial.whole:
            candidate.keep(layers, found.precisions)
            choice = replace(choice, added_error=found.error - self._error)
            self._error = found.error
        notes = [choice.note, *self._notes]
        choice = replace(choice, note="; ".join(filter(None, notes)))
        log.info("%s: %s, error %s, %d trials", region.name, choice.precision, choice.error, choice.evaluations)
        return choice


@dataclass(slots=True)
class _Candidate:
    """A region whose model is written in one assignment after the other."""

    region: Region
    ranges: Mapping[str, Range]
    fixed: Mapping[str, Range]
    trial: RegionTrial
    scratch: Path

    def error(self, layers: Mapping[str, Sequence[str]], assignment: Assignment) -> float:
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            try:
                model = self._write(layers, assignment, Path(folder))
            except BuildError as failed:
                log.info("%s: %s", self.region.name, failed.problem)
                return math.inf
            return self.trial.error(model)

    def keep(self, layers: Mapping[str, Sequence[str]], assignment: Assignment) -> None:
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            self.trial.keep(self._write(layers, assignment, Path(folder)))

    def _write(self, layers: Mapping[str, Sequence[str]], assignment: Assignment, folder: Path) -> Path:
        """The model in these precisions, as a file in `folder`."""
        proto, weights = onnx_files.load_model(self.region.model)
        ops = _by_precision(layers, assignment)
        converted = rounded(mixed(proto, ops, weights, ranges=self.ranges, fixed=self.fixed))
        path = folder / "model.onnx"
        onnx_files.save_model(converted, path, weights)
        return path


def _by_precision(layers: Mapping[str, Sequence[str]], assignment: Assignment) -> dict[str, tuple[str, ...]]:
    return {
        precision: tuple(op for name, ops in layers.items() if assignment[name] == precision for op in ops)
        for precision in dict.fromkeys(assignment.values())
    }


def _choice(region: Region, layers: Mapping[str, Sequence[str]], found: Found, ladder: Sequence[str]) -> Choice:
    ops = _by_precision(layers, found.precisions)
    kept = tuple(_kept(layer, layers[layer.name], found.precisions[layer.name]) for layer in found.kept)
    fastest = next(precision for precision in ladder if precision in ops)
    note = "" if "int8" in ladder else "int8 was not tried: it takes --samples to find ranges on"
    return Choice(region.name, fastest, ops, found.error, found.error or 0.0, found.evaluations, kept, note)


def _kept(layer: KeptLayer, ops: Sequence[str], precision: str) -> KeptHigher:
    if layer.error is None:
        return KeptHigher(layer.name, tuple(ops), precision, None, f"not tried in {layer.refused}: the trials ran out")
    if not math.isfinite(layer.error):
        why = f"in {layer.refused} the result is infinite or NaN, or can't be had"
        return KeptHigher(layer.name, tuple(ops), precision, None, why)
    return KeptHigher(layer.name, tuple(ops), precision, layer.error, f"refused in {layer.refused}")


def demote(choices: Sequence[Choice]) -> tuple[Choice, ...] | None:
    """The same, the region that adds most to the error in fp32; None where all are."""
    lowered = [choice for choice in choices if choice.error is not None]
    if not lowered:
        return None
    worst = max(lowered, key=lambda choice: choice.added_error)
    every = tuple(op for ops in worst.ops.values() for op in ops)
    note = f"{worst.precision}: the whole model's error was too large with it"
    back = Choice(worst.region, "fp32", {"fp32": every}, None, 0.0, worst.evaluations, (), note)
    return tuple(back if choice is worst else choice for choice in choices)
