"""How many processes to run side by side."""

from __future__ import annotations

import os

_MOST = 4
"""More take memory, and what they share (disk, memory bandwidth) no longer lets them go faster."""


def side_by_side(tasks: int) -> int:
    """How many processes to use for so many tasks, on the cores that this process may use."""
    return max(1, min(tasks, len(os.sched_getaffinity(0)), _MOST))
