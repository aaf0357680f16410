"""Progress on a terminal: a spinner while a stage runs; one line per finished stage everywhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator


class ConsoleProgress:
    """Writes to standard error, so that standard output holds results only."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stderr)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with self._console.status(name) if self._console.is_terminal else contextlib.nullcontext():
            yield
        self._console.print(f"{name:<8}{time.perf_counter() - start:7.1f} s", highlight=False)
