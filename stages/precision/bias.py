"""Bias correction: what rounding the weights of a convolution adds to its results on average is taken from its bias.

Where inputs are never negative the errors of a kernel's weights do not cancel: they shift all results. Source: M. Nagel et
al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section 4.2, with means from samples.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from stages.compare import Array

Floats = npt.NDArray[np.float64]


class ChannelMeans:
    """The mean of each channel of a tensor (N, C, …) over runs, samples and positions."""

    def __init__(self) -> None:
        self._sum: Floats = np.zeros(0)
        self._count = 0

    def observe(self, values: Array) -> None:
        """Take in a tensor."""
        if not values.size:
            return
        others = (0, *range(2, values.ndim))
        total = values.sum(others, dtype=np.float64)
        self._sum = self._sum + total if self._count else total
        self._count += values.size // len(total)

    def values(self) -> tuple[float, ...]:
        """By channel; empty where nothing was seen, or no finite mean."""
        if not self._count or not np.isfinite(self._sum).all():
            return ()
        return tuple((self._sum / self._count).tolist())


def drift(kernel: Array, rounded: Array) -> Floats:
    """What rounding adds to each weight, summed over a kernel (output channels, inputs, …) by its first two axes."""
    gap = rounded.astype(np.float32) - kernel.astype(np.float32)
    total: Floats = gap.sum(tuple(range(2, kernel.ndim)), dtype=np.float64)
    return total


def corrected(bias: Array | None, drift: Floats, means: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """The bias of a convolution whose weights have drifted.

    Args:
        bias: None where it has none.
        drift: (output channels, inputs of each).
        means: of the channels that it reads: the inputs of all its groups, one after the other.
    """
    outputs, inputs = drift.shape
    groups = len(means) // inputs
    read = np.repeat(np.reshape(means, (groups, inputs)), outputs // groups, 0)
    before = np.zeros(outputs, np.float32) if bias is None else bias.astype(np.float32)
    after: npt.NDArray[np.float32] = (before - (drift * read).sum(1)).astype(np.float32)
    return after
