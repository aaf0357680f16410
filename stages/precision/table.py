"""The calibration table: what ranges the tensors of every region had on samples, as readable JSON.

A region is known by the SHA-256 of its ONNX model, weights included, so that a table serves for as long as the model
is split the same way, and never for another model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import CalibrationError

FORMAT = "graftrt calibration table"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Range:
    """What a tensor held: `low` and `high` are the smallest and largest values seen (infinite if one was infinite or NaN),
    `amax` the magnitude up to which it is worth being exact, as the calibration method chose.

    `means` are those of its channels, where a convolution reads it. `sensitive`: 8 bits here would change the region's
    results too much (`sensitivity.py`), so that what reads it is not quantised."""

    amax: float
    low: float
    high: float
    means: tuple[float, ...] = ()
    sensitive: bool = False

    @property
    def seen(self) -> float:
        """The largest magnitude seen."""
        return max(abs(self.low), abs(self.high))


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges of tensors by the region's digest and the tensor's name in its ONNX model.

    Attributes:
        method: entropy, minmax, percentile or mse.
        samples: how many runs of the regions were observed; a region in a loop's body may run more than once a sample.
    """

    method: str
    samples: int
    regions: Mapping[str, Mapping[str, Range]]

    def write(self, path: Path) -> None:
        """Write the table as JSON.

        Raises:
            OSError: the file can't be written.
        """
        regions = {
            digest: {name: _entry(found) for name, found in sorted(ranges.items())}
            for digest, ranges in sorted(self.regions.items())
        }
        head = {"format": FORMAT, "version": FORMAT_VERSION, "method": self.method, "samples": self.samples}
        path.write_text(json.dumps({**head, "regions": regions}, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> CalibrationTable:
        """Read a table that `write` wrote.

        Raises:
            CalibrationError: there is no such file, or it is no calibration table of a version known here.
        """
        remedy = "give the calibration.json that a conversion wrote, or --samples to calibrate anew"
        try:
            body = json.loads(path.read_text())
            if body["format"] != FORMAT:
                raise CalibrationError(f"{path}: is no calibration table", remedy)
            if body["version"] > FORMAT_VERSION:
                raise CalibrationError(
                    f"{path}: has format version {body['version']}, this GraftRT knows {FORMAT_VERSION}",
                    "upgrade graftrt",
                )
            regions = {
                str(digest): {str(name): _range(entry) for name, entry in ranges.items()}
                for digest, ranges in body["regions"].items()
            }
            return CalibrationTable(str(body["method"]), int(body["samples"]), regions)
        except OSError as error:
            raise CalibrationError(f"{path}: can't be read: {error.strerror}", remedy) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CalibrationError(f"{path}: is no calibration table: {error!r}", remedy) from error


def merged(tables: Iterable[CalibrationTable], method: str) -> CalibrationTable:
    """Several regions' tables as one."""
    found = list(tables)
    regions = {digest: ranges for table in found for digest, ranges in table.regions.items()}
    return CalibrationTable(method, max((table.samples for table in found), default=0), regions)


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _entry(found: Range) -> dict[str, object]:
    entry: dict[str, object] = {"amax": found.amax, "min": _finite(found.low), "max": _finite(found.high)}
    if found.means:
        entry["means"] = list(found.means)
    if found.sensitive:
        entry["sensitive"] = True
    return entry


def _range(entry: Mapping[str, Any]) -> Range:
    low, high, amax = entry["min"], entry["max"], entry["amax"]
    if amax is None or not (math.isfinite(amax) and amax >= 0):
        raise ValueError(f"amax {amax} is no magnitude")
    means = tuple(float(mean) for mean in entry.get("means", ()))
    if not all(map(math.isfinite, means)):
        raise ValueError("means are no numbers")
    return Range(
        float(amax),
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
        means,
        bool(entry.get("sensitive", False)),
    )
