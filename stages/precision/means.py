"""The mean of each channel of what a convolution reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from stages.compare import Array


class ChannelMeans:
    """Means over runs, samples and positions; tensors are (N, C, …)."""

    def __init__(self) -> None:
        self._sum: npt.NDArray[np.float64] = np.zeros(0)
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
