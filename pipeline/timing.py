"""How long calls take: how `graftrt bench` measures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from stages.errors import BenchError

MOST_SYNCHRONOUS = 1000
"""Calls whose latency is measured one by one, at most."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: how many medians are taken over: of as many pipelined rounds, and of at least as many single calls.
        seconds: least length of a round; a call that takes longer is a round of its own.
    """

    rounds: int = 5
    seconds: float = 0.25

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise BenchError(f"rounds {self.rounds} is not positive", "choose 5 or more")
        if not self.seconds > 0:
            raise BenchError(f"seconds {self.seconds:g} is not positive", "choose 0.25 or more")


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds for one call.

    Attributes:
        first: the first call, with all that is compiled or loaded at first use.
        synchronous: median of calls whose results are fetched before the next begins: latency.
        synchronous_p99: of the same calls, the time that 99 % keep; of less than 100 runs it is the slowest.
        pipelined: median over rounds of calls that follow one another, the last one's results fetched: its inverse is
            throughput. Where calls return before they are done (on a GPU) it is less than `synchronous`.
        runs: how many calls `synchronous` and `synchronous_p99` are of.
    """

    first: float
    synchronous: float
    synchronous_p99: float
    pipelined: float
    runs: int


def timed(enqueue: Callable[[], object], fetch: Callable[[], object], effort: Effort | None = None) -> Timing:
    """Measure calls in this process: the first, then warm ones.

    Args:
        enqueue: makes one call, and need not wait for its results.
        fetch: waits for the results of the last call and brings them to Python.
        effort: None: the default one.
    """
    effort = effort or Effort()

    def once() -> float:
        start = time.perf_counter()
        enqueue()
        fetch()
        return time.perf_counter() - start

    first = once()
    start, warm = time.perf_counter(), [once()]
    while time.perf_counter() - start < effort.seconds:
        warm.append(once())
    # The last ones: caches fill and clocks rise while it warms up.
    count = max(1, round(effort.seconds / statistics.median(warm[-10:])))
    pipelined = []
    for _ in range(effort.rounds):
        start = time.perf_counter()
        for _ in range(count):
            enqueue()
        fetch()
        pipelined.append((time.perf_counter() - start) / count)
    start, synchronous = time.perf_counter(), [once() for _ in range(effort.rounds)]
    while time.perf_counter() - start < effort.rounds * effort.seconds and len(synchronous) < MOST_SYNCHRONOUS:
        synchronous.append(once())
    return Timing(
        first=1e3 * first,
        synchronous=1e3 * statistics.median(synchronous),
        synchronous_p99=1e3 * percentile(synchronous, 0.99),
        pipelined=1e3 * statistics.median(pipelined),
        runs=len(synchronous),
    )


def percentile(values: list[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ordered = sorted(values)
    return next(value for n, value in enumerate(ordered, 1) if n >= share * len(ordered))
