"""Loaded engines, one of each in the process, counted by their users.

Every retrace of a tf.function makes another kernel, and a region may be inlined in several functions: they all
share the engine of their plan.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from stages.engine_op.engines import Engine
from stages.engine_op.reasons import CannotRun

Key = tuple[str, str]
"""SHA-256 of the plan, device (`cpu` or `gpu:<ordinal>`)."""


@dataclass(slots=True)
class _Entry:
    users: int = 0
    loading: threading.Lock = field(default_factory=threading.Lock)
    engine: Engine | None = None
    refusal: CannotRun | None = None


class Registry:
    """Engines by plan and device. Thread-safe; loading one engine delays no other."""

    def __init__(self) -> None:
        # Re-entrant: garbage collection inside a locked block may destroy a kernel, which releases its engines.
        self._lock = threading.RLock()
        self._entries: dict[Key, _Entry] = {}

    def acquire(self, key: Key, load: Callable[[], Engine]) -> Engine:
        """The engine of `key`, loaded by the first of its users; each must `release` it.

        Raises:
            CannotRun: `load` refused, now or for a user that waited too.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.users += 1
        try:
            with entry.loading:
                if entry.refusal is not None:
                    raise CannotRun(entry.refusal.reason, entry.refusal.detail)
                if entry.engine is None:
                    try:
                        entry.engine = load()
                    except CannotRun as refusal:
                        entry.refusal = refusal
                        raise
                return entry.engine
        except BaseException:
            self.release(key)
            raise

    def release(self, key: Key) -> None:
        """One user less; the last one's engine is dropped, outside the lock."""
        with self._lock:
            entry = self._entries[key]
            entry.users -= 1
            if entry.users:
                return
            del self._entries[key]
        if entry.engine is not None:
            entry.engine.close()

    def users(self) -> dict[Key, int]:
        """How many users each loaded engine has."""
        with self._lock:
            return {key: entry.users for key, entry in self._entries.items()}
