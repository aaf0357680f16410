"""The ranges of all regions of a partition: TensorFlow is run up to each region's boundary on the samples, and each region
on what it is given there."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages import onnx_files, progress
from stages.artifacts import FrozenGraph, Partition, Region
from stages.errors import CalibrationError, VerifyError
from stages.graph import Graph
from stages.precision import FORMATS, QUANTISED
from stages.precision.calibration import Calibrator
from stages.precision.fake import stated_ranges, states_ranges
from stages.precision.histogram import METHODS
from stages.precision.sensitivity import DEFAULT_ERROR
from stages.precision.table import CalibrationTable, Range, merged
from stages.profiles import onnx_inputs
from stages.samples import Samples, read
from stages.scopes import Call, Scope

if TYPE_CHECKING:
    from stages.compare import Array

DEFAULT_METHOD = "percentile"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """Where ranges come from.

    Attributes:
        samples: real inputs, as for `samples.read`.
        method: entropy, minmax, percentile or mse.
        table: a table that an earlier conversion wrote; it must hold every region.
        int8_error: largest error of a region in int8, as root mean square over standard deviation.
    """

    samples: Samples = None
    method: str = DEFAULT_METHOD
    table: Path | None = None
    int8_error: float = DEFAULT_ERROR


@dataclass(frozen=True, slots=True)
class Ranges:
    """All that is known of the tensors of a partition's regions.

    Attributes:
        table: what was seen on samples; None if there were none.
        stated: what the model states itself, by region and TensorFlow op.
    """

    table: CalibrationTable | None
    stated: Mapping[str, Mapping[str, Range]]

    @staticmethod
    def of(partition: Partition, precision: str, table: CalibrationTable | None) -> Ranges:
        """The table, and for int8, fp8 and auto the model's own ranges."""
        if precision not in (*QUANTISED, "auto") or not states_ranges(partition.frozen):
            return Ranges(table, {})
        with ExitStack() as stack:
            stated = {
                region.name: stated_ranges(scope.graph, region.ops)
                for scope, regions in scopes_of(partition, stack)
                for region in regions
            }
        return Ranges(table, stated)

    def of_region(self, region: Region) -> tuple[Mapping[str, Range], Mapping[str, Range]]:
        """By tensor of its ONNX model, and by TensorFlow op."""
        seen = {} if self.table is None else self.table.regions.get(region.digest, {})
        return seen, self.stated.get(region.name, {})


def check_options(frozen: FrozenGraph, precision: str, options: CalibrationOptions) -> None:
    """Raise where a precision needs ranges and there is nothing to take them from.

    Raises:
        CalibrationError: no samples, no table, and the model states no ranges itself; the table can't be read; or the
            method is unknown.
    """
    if options.method not in METHODS:
        raise CalibrationError(f"calibration method {options.method!r} is unknown", f"choose {', '.join(METHODS)}")
    if options.table is not None:
        CalibrationTable.read(options.table)
    given = options.table is not None or options.samples is not None
    if precision in QUANTISED and not given and not states_ranges(frozen):
        raise CalibrationError(
            f"{precision} needs samples to find ranges by",
            "--samples with real inputs, or --calibration-table of an earlier conversion",
        )


def calibrated_ranges(
    partition: Partition, precision: str, options: CalibrationOptions, *, scratch: Path
) -> CalibrationTable | None:
    """The table to build regions with; None where none is needed or there is nothing to make it of.

    fp16 and bf16 take ranges where there are samples, to keep in float32 what overflows on them, and to correct biases; auto,
    to try int8 too.

    Args:
        scratch: folder for passing files.

    Raises:
        CalibrationError: see `check_options`; the table can't be read or is another model's; a region can't be run.
        SplitError: samples don't fit the model.
        VerifyError: TensorFlow can't run the model on the samples.
    """
    check_options(partition.frozen, precision, options)
    if precision not in (*QUANTISED, *FORMATS, "auto"):
        return None
    if options.table is not None:
        table = CalibrationTable.read(options.table)
        _check_fit(table, partition, options.table)
        return table
    if options.samples is None:
        return None
    samples = read(partition.frozen, options.samples, spool=scratch / "samples")
    if not samples:
        raise CalibrationError("no samples to calibrate with", "give some with --samples")
    method = "minmax" if precision in FORMATS else options.method
    tolerated = options.int8_error if precision == "int8" else None
    return calibrate(partition, samples, method, tolerated=tolerated, scratch=scratch)


def calibrate(
    partition: Partition,
    samples: Sequence[Mapping[str, Array]],
    method: str,
    *,
    tolerated: float | None = None,
    scratch: Path,
) -> CalibrationTable:
    """Ranges of every region's tensors on samples, one sample at a time.

    Args:
        samples: inputs of the model, by tensor name.
        tolerated: largest error of a region in int8; what causes more is marked as sensitive. None: nothing is.

    Raises:
        CalibrationError: the method is unknown, or a region can't be run.
        VerifyError: TensorFlow can't run the model on a sample.
    """
    calibrators = {region.name: Calibrator(region.model, method, scratch=scratch) for region in partition.regions}
    with ExitStack() as stack:
        scopes = list(scopes_of(partition, stack))
        for number, sample in enumerate(samples, start=1):
            log.info("calibration: sample %d of %d", number, len(samples))
            progress.report(number - 1, len(samples), f"sample {number} of {len(samples)}")
            for scope, regions in scopes:
                for call in scope.calls(sample) if regions else ():
                    _observe(scope, regions, call, calibrators)
    unseen = CalibrationTable(method, 0, {region.digest: {} for region in partition.regions})
    return merged([unseen, *(c.table(tolerated=tolerated) for c in calibrators.values() if c.runs)], method)


def scopes_of(partition: Partition, stack: ExitStack) -> Iterator[tuple[Scope, list[Region]]]:
    """Every graph of the model, those around it first, with its regions."""
    scopes = deque([Scope(Graph(partition.frozen))])
    while scopes:
        scope = scopes.popleft()
        stack.callback(scope.close)
        regions = [region for region in partition.regions if region.scope == scope.graph.scope]
        yield scope, regions
        scopes.extend(scope.inner(regions))


def _observe(scope: Scope, regions: Sequence[Region], call: Call, calibrators: Mapping[str, Calibrator]) -> None:
    fed = {region.name: onnx_inputs(region) for region in regions}
    names = list(dict.fromkeys(tensor.name for read in fed.values() for _, tensor in read))
    try:
        values = scope.reference.run(names, call) if names else {}
    except VerifyError:
        if not scope.graph.scope:
            raise
        return  # a branch may refuse what it would not be given
    for region in regions:
        calibrators[region.name].observe({name: values[tensor.name] for name, tensor in fed[region.name]})


def _check_fit(table: CalibrationTable, partition: Partition, path: Path) -> None:
    for region in partition.regions:
        remedy = "calibrate anew with --samples"
        if region.digest not in table.regions:
            raise CalibrationError(
                f"{path}: holds no ranges of {region.name}: it is of another model, or of this one split otherwise",
                remedy,
            )
        model, _ = onnx_files.load_model(region.model)
        known = {value.name for value in model.graph.input} | {n for node in model.graph.node for n in node.output}
        if unknown := sorted(table.regions[region.digest].keys() - known):
            raise CalibrationError(f"{path}: {region.name} has no tensor {unknown[0]}", remedy)
