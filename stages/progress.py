"""How far long work has come: whoever does it reports, whoever wants to know listens.

As with logging, neither knows the other, and nobody hands a callback from function to function. A listener belongs to the
context that it was set in, so that two conversions in one process don't hear each other; threads that work for a
conversion run in a copy of its context. Without a listener a report costs nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

Listener = Callable[[float, str], None]
"""Called with the share that is done, from 0 to 1, and a few words about what is being done; by any thread."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def listener() -> Listener | None:
    """Who hears reports now."""
    return _listener.get()


@contextlib.contextmanager
def heard_by(heard: Listener | None) -> Iterator[None]:
    """Let a listener hear what is reported within a block, and nobody else."""
    token = _listener.set(heard)
    try:
        yield
    finally:
        _listener.reset(token)


def report(done: float, total: float, words: str = "") -> None:
    """Say that `done` of `total` is done, in any unit."""
    heard = _listener.get()
    if heard is not None:
        heard(min(1.0, done / total) if total else 1.0, words)


class Tally:
    """Work that consists of parts, of which several may be done at the same time.

    Args:
        total: size of all parts together, in any unit.
    """

    def __init__(self, total: float) -> None:
        self._total = total
        self._heard = _listener.get()
        self._lock = threading.Lock()
        self._done: dict[object, float] = {}

    @contextlib.contextmanager
    def part(self, size: float, words: str) -> Iterator[None]:
        """One part: done when the block ends; what is reported within it counts as a share of its size."""
        key = object()

        def heard(share: float, more: str) -> None:
            self._set(key, size * share, ": ".join(filter(None, (words, more))))

        if self._heard is None:
            yield
            return
        heard(0, "")
        with heard_by(heard):
            yield
        heard(1, "")

    def _set(self, key: object, done: float, words: str) -> None:
        with self._lock:
            self._done[key] = done
            share = sum(self._done.values()) / self._total if self._total else 1.0
        assert self._heard is not None
        self._heard(min(1.0, share), words)
