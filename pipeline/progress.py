"""Progress on a terminal: a bar while a stage runs; one line per finished stage everywhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.progress import heard_by

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

_REDRAWN_PER_SECOND = 2
"""A fifth of rich's own: drawing takes time of a core on which a build may run, 1 ms or, beside other work, 4 ms."""


class ConsoleProgress:
    """Writes to standard error, so that standard output holds results only."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stderr)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with self._bar(name) if self._console.is_terminal else contextlib.nullcontext():
            yield
        self._finished(name, f"{time.perf_counter() - start:7.1f} s")

    def taken_over(self, name: str, seconds: float) -> None:
        self._finished(name, f"{seconds:7.1f} s, done before")

    def _finished(self, name: str, words: str) -> None:
        self._console.print(f"{name:<8}{words}", highlight=False)

    @contextlib.contextmanager
    def _bar(self, name: str) -> Iterator[None]:
        with self._bars() as bars:
            # Without a report the bar only moves to and fro.
            task = bars.add_task(f"{name:<8}", total=None, words="")

            def heard(share: float, words: str) -> None:
                bars.update(task, total=1.0, completed=share, words=words)

            with heard_by(heard):
                yield

    def _bars(self) -> Bars:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console,
            transient=True,
            refresh_per_second=_REDRAWN_PER_SECOND,
        )
