"""Which activations are too sensitive for 8 bits: a few convolutions often cause most of a model's error.

First all is quantised and compared with float32 on samples. If the result is too far off, each activation is quantised
alone, and those that cost most for the multiplications that they speed up are spared, one after the other, until the rest
is close enough. Errors of different places hardly depend on each other, so that their squares add up; what they are
together is checked by running the model.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages import onnx_files
from stages.execute import Session
from stages.precision.folding import fold_normalisation
from stages.precision.quantize import with_pairs
from stages.precision.sites import multiplications
from stages.precision.table import Range

if TYPE_CHECKING:
    from stages.compare import Array

DEFAULT_ERROR = 0.015
"""Root mean square of the difference, over the standard deviation of the result. With more MobileNet changes its answer on
more than 2 % of photographs (benchmarks/precision.py)."""
_RUNS = 16
_ALONE_RUNS = 8
_BYTES = 64 << 20

log = logging.getLogger(__name__)


class Kept:
    """Inputs of a few runs, evenly spread over all of them: 8 to 16, or as many as fit in 64 MiB, but at least one."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Array]] = []
        self._stride = 1
        self._seen = 0

    def add(self, batch: Mapping[str, Array]) -> None:
        """Take in a run."""
        if self._seen % self._stride == 0:
            self.batches.append({name: np.array(array) for name, array in batch.items()})
            while len(self.batches) > 1 and (len(self.batches) > _RUNS or self._bytes() > _BYTES):
                self.batches = self.batches[::2]
                self._stride *= 2
        self._seen += 1

    def _bytes(self) -> int:
        return sum(array.nbytes for batch in self.batches for array in batch.values())


def sensitive(
    path: Path, ranges: Mapping[str, Range], batches: Sequence[Mapping[str, Array]], *, tolerated: float, scratch: Path
) -> tuple[str, ...]:
    """The tensors that nothing should read in int8, the most sensitive first.

    Args:
        path: the region's ONNX file in float32.
        ranges: of its tensors.
        batches: an array for each of its inputs.
        tolerated: largest error; see `DEFAULT_ERROR`.
        scratch: folder for passing copies of the model.

    Raises:
        VerifyError: ONNX Runtime does not run the model.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        trial = _Trial(path, ranges, batches, Path(folder))
        whole = trial.error(trial.gains)
        if whole <= tolerated:
            return ()
        log.info("calibration: in int8 %s is off by %.3f, looking for what causes it", path.parent.name, whole)
        squares = {name: trial.error([name], _ALONE_RUNS) ** 2 for name in trial.gains}
        order = sorted(squares, key=lambda name: squares[name] / (trial.gains[name] or 1e-9), reverse=True)
        rest = np.cumsum([squares[name] for name in reversed(order)])[::-1]
        limit = tolerated**2
        count = int(np.count_nonzero(rest > limit))
        while count < len(order):
            error = trial.error(order[count:])
            log.info("calibration: %d of %d activations spared, off by %.3f", count, len(order), error)
            if error <= tolerated:
                break
            # Together they cost more than their sum: aim lower by as much.
            limit *= (tolerated / error) ** 2
            count = max(count + 1, int(np.count_nonzero(rest > limit)))
        return tuple(order[:count])


class _Trial:
    """A region in float32 and with some of its activations in int8, on the same inputs."""

    def __init__(
        self, path: Path, ranges: Mapping[str, Range], batches: Sequence[Mapping[str, Array]], folder: Path
    ) -> None:
        self._model, self._weights = onnx_files.load_model(path)
        fold_normalisation(self._model, self._weights)
        self._ranges = ranges
        self._batches = batches
        self._file = folder / "trial.onnx"
        self.gains = multiplications(self._model, self._weights)
        """The activations that can be read in int8, and how many multiplications gain from it."""
        session = Session(path)
        self._expected = [session.run(batch) for batch in batches]

    def error(self, names: Iterable[str], most: int | None = None) -> float:
        """With only these activations in int8: the largest of the errors of the outputs."""
        chosen = {name: self._ranges[name] for name in names}
        weights = dict(self._weights)
        model, _ = with_pairs(self._model, "int8", weights, ranges=chosen, fixed={}, keep=())
        onnx_files.save_model(model, self._file, weights)
        session = Session(self._file)
        expected = self._expected[:most]
        actual = [session.run(batch) for batch in self._batches[:most]]
        return max(_error([e[name] for e in expected], [a[name] for a in actual]) for name in expected[0])


def _error(expected: Sequence[Array], actual: Sequence[Array]) -> float:
    a, b = (np.concatenate([array.astype(np.float64).ravel() for array in arrays]) for arrays in (expected, actual))
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.any():
        return 0.0
    a, b = a[finite], b[finite]
    scale = a.std() or np.sqrt(np.mean(a**2)) or 1.0
    return float(np.sqrt(np.mean((a - b) ** 2)) / scale)
