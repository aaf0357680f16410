"""How far TensorRT's builder has come: its phases lie in one another, and each has steps."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from stages.progress import Listener

_SECONDS_BETWEEN_REPORTS = 0.1
"""A person sees no more, and a build has thousands of steps."""


@dataclass(slots=True)
class _Phase:
    number: int
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """The phases that have begun and not ended, told to a listener as the share of the outermost that is done.

    A step of a phase that has inner phases counts as done in part while these run. Phases are known by their names, which
    a builder uses several times, within one another too: what contains a phase is what had begun before it, and the share
    never falls. The builder may call from several threads.
    """

    def __init__(self, heard: Listener) -> None:
        self._heard = heard
        self._lock = threading.Lock()
        self._open: dict[str, _Phase] = {}
        self._started = 0
        self._share = 0.0
        self._next = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins, within another one or as the outermost."""
        with self._lock:
            self._started += 1
            self._open[name] = _Phase(self._started, parent, max(steps, 1))
            self._tell(name)

    def step(self, name: str, step: int) -> None:
        """Step number `step` of a phase, counted from 0, is done."""
        with self._lock:
            if name in self._open:
                self._open[name].done = max(self._open[name].done, step + 1)
                self._tell(name)

    def finish(self, name: str) -> None:
        """A phase has ended; it may have skipped its last steps."""
        with self._lock:
            self._open.pop(name, None)

    def _tell(self, name: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS_BETWEEN_REPORTS
            outermost = min(self._open, key=lambda opened: self._open[opened].number)
            self._share = max(self._share, self._share_of(outermost))
            self._heard(self._share, name)

    def _share_of(self, name: str) -> float:
        phase = self._open[name]
        inside = [n for n, other in self._open.items() if other.parent == name and other.number > phase.number]
        inner = max(map(self._share_of, inside), default=0.0)
        return min(1.0, (phase.done + inner) / phase.steps)
