"""A tensor's values, counted as they come, in memory that does not grow; and the range that each method makes of them.

Sources: the entropy method is S. Migacz, "8-bit Inference with TensorRT" (GTC 2017), its zero bin as in NVIDIA's
pytorch-quantization (`calib/histogram.py`), as are `mse` and `percentile`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.precision.table import Range

if TYPE_CHECKING:
    from stages.compare import Array

METHODS = ("entropy", "minmax", "percentile", "mse")
BINS = 4096
"""Of the magnitudes; at least half of them lie below the largest one."""
LEVELS = 128
"""Magnitudes that int8 has, zero included."""
PERCENTILE = 99.99
"""Share of the magnitudes, in percent, that `percentile` keeps unclipped."""
_STRIDE = 16
"""Bins from one threshold tried to the next: to 0.4 % of the largest magnitude."""

Floats = npt.NDArray[np.float64]


class Histogram:
    """Counts of magnitudes. Where a value lies beyond the last bin, bins are merged by two and become twice as wide, so
    that no earlier value has to be seen again."""

    def __init__(self, counted: bool = True) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(BINS if counted else 0, np.int64)
        self.limit = 0.0
        """Where the last bin ends; 0 until a value other than 0 is seen."""
        self.low, self.high = math.inf, -math.inf

    def observe(self, values: Array) -> None:
        """Take in a tensor; an empty one says nothing."""
        if not values.size:
            return
        flat = values.reshape(-1).astype(np.float32, copy=False)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.low, self.high = -math.inf, math.inf
            return
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.counts.size:
            self._count(np.abs(flat), max(-low, high))

    def _count(self, magnitudes: npt.NDArray[np.float32], top: float) -> None:
        self.limit = self.limit or top
        while self.limit < top:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros_like(merged)])
            self.limit *= 2
        if not top:
            self.counts[0] += magnitudes.size
            return
        places = np.minimum(magnitudes * (BINS / self.limit), BINS - 1).astype(np.int32)
        self.counts += np.bincount(places, minlength=BINS)

    def range(self, method: str) -> Range:
        """What the method makes of all that was observed. Nothing, or infinity: a range that nobody can use."""
        if not self.low <= self.high:
            return Range(0.0, 0.0, 0.0)
        seen = max(abs(self.low), abs(self.high))
        if not math.isfinite(seen):
            return Range(0.0, self.low, self.high)
        chosen = {"entropy": _entropy, "percentile": _percentile, "mse": _mse}.get(method)
        if chosen is None or not self.counts.size or not self.limit:
            return Range(seen, self.low, self.high)
        return Range(min(chosen(self.counts) / BINS * self.limit, seen), self.low, self.high)


def _candidates(counts: npt.NDArray[np.int64]) -> range:
    """Numbers of bins to keep, from as many as int8 has levels to all that hold something."""
    used = int(np.flatnonzero(counts)[-1]) + 1
    return range(LEVELS, min(max(used, LEVELS) + _STRIDE, BINS + 1), _STRIDE)


def _percentile(counts: npt.NDArray[np.int64]) -> float:
    share = np.cumsum(counts) / counts.sum()
    return float(np.searchsorted(share, PERCENTILE / 100) + 1)


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    """The threshold at which the distribution, clipped and in 128 levels, loses least (Kullback-Leibler divergence)."""
    bins = counts.astype(np.float64)
    bins[0] = bins[1]  # zeros are exact in any range, and after a ReLU they outweigh all else
    if not bins.any():
        return float(BINS)
    best, chosen = math.inf, BINS
    for kept in _candidates(counts):
        loss = _divergence(bins, kept)
        if loss < best:
            best, chosen = loss, kept
    return float(chosen)


def _divergence(bins: Floats, kept: int) -> float:
    inside = bins[:kept]
    full = inside > 0
    if not full.any():
        return math.inf
    level = np.arange(kept) * LEVELS // kept
    sums = np.bincount(level, inside, LEVELS)
    occupied = np.bincount(level, full, LEVELS)
    coarse = np.where(full, (sums / np.maximum(occupied, 1))[level], 0.0)
    reference = inside.copy()
    reference[-1] += bins[kept:].sum()
    p, q = reference / reference.sum(), coarse / coarse.sum()
    both = p > 0
    if (q[both] == 0).any():
        return math.inf
    return float(np.sum(p[both] * np.log(p[both] / q[both])))


def _mse(counts: npt.NDArray[np.int64]) -> float:
    """The threshold at which clipping and rounding together cost least, as the mean of squares."""
    centres = np.arange(BINS) + 0.5
    best, chosen = math.inf, BINS
    for kept in _candidates(counts):
        step = kept / (LEVELS - 1)
        rounded = np.minimum(np.rint(centres / step), LEVELS - 1) * step
        loss = float(np.sum(counts * (centres - rounded) ** 2))
        if loss < best:
            best, chosen = loss, kept
    return float(chosen)
