"""The table that `summary()` prints: like TF-TRT's, and with the reasons that it never gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.reasons import groups
from pipeline.report import RegionReport, Report
from pipeline.tftrt.conversion import Conversion
from stages.artifacts import Tensor
from stages.errors import ArgumentError
from stages.sizes import shape_text

SHORTEST_LINE = 160
_COLUMNS = {
    "Engine": 0.09,
    "Backends": 0.23,
    "# Ops": 0.06,
    "# Inputs": 0.07,
    "# Outputs": 0.07,
    "Input DTypes": 0.12,
    "Output DTypes": 0.12,
    "Input Shapes": 0.12,
    "Output Shapes": 0.12,
}
"""Column, and its share of a line."""

Print = Callable[[str], object]


def print_summary(conversion: Conversion | str, line_length: int, detailed: bool, print_fn: Print) -> None:
    """Print a table of the engines, the totals and why ops stay in TensorFlow.

    Args:
        conversion: or why there is none yet.

    Raises:
        ArgumentError: lines that are too short.
    """
    if line_length < SHORTEST_LINE:
        raise ArgumentError(f"line_length {line_length} is too short", f"{SHORTEST_LINE} or more")
    print_fn(_row(list(_COLUMNS), line_length))
    print_fn("=" * line_length)
    if isinstance(conversion, str):
        print_fn(f"No engines yet, build(input_fn) makes them: {conversion}")
        return
    report = conversion.report
    for region in report.regions:
        print_fn(_row(_fields(region), line_length))
        if detailed:
            for op, count in sorted(conversion.op_types[region.name].items()):
                print_fn(f"    - {op}: {count}x")
    print_fn("=" * line_length)
    print_fn(f"[*] Total number of TensorRT engines: {len(report.regions)}")
    share = 100 * report.ops_in_engines / report.ops_total if report.ops_total else 0.0
    print_fn(f"[*] % of OPs Converted: {share:.2f}% [{report.ops_in_engines}/{report.ops_total}]")
    _print_reasons(report, print_fn)


def _print_reasons(report: Report, print_fn: Print) -> None:
    if report.left_in_tensorflow:
        print_fn("[*] Left in TensorFlow:")
    for group in groups(report.left_in_tensorflow):
        print_fn(f"    - {group}")


def _fields(region: RegionReport) -> list[str]:
    return [
        region.name,
        ", ".join(f"{engine.backend} {engine.precision}" for engine in region.engines),
        str(len(region.ops)),
        str(len(region.inputs)),
        str(len(region.outputs)),
        _listed(region.inputs, lambda tensor: tensor.dtype),
        _listed(region.outputs, lambda tensor: tensor.dtype),
        _listed(region.inputs, lambda tensor: shape_text(tensor.shape)),
        _listed(region.outputs, lambda tensor: shape_text(tensor.shape)),
    ]


def _listed(tensors: Sequence[Tensor], what: Callable[[Tensor], str]) -> str:
    return "[" + ", ".join(what(tensor) for tensor in tensors) + "]"


def _row(fields: Sequence[str], line_length: int) -> str:
    """Fields side by side, each cut to its column's width."""
    cells = []
    for field, share in zip(fields, _COLUMNS.values(), strict=True):
        width = int(line_length * share) - 1
        cells.append((field if len(field) <= width else field[: width - 4] + " ...").ljust(width))
    return " ".join(cells).rstrip()
