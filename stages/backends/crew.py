"""Several workers side by side, so that regions are asked about and built in parallel processes.

A child takes half a second to a second to start, and many models have only small regions: so the first worker begins
alone, and others are started when that takes longer than starting them.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TypeVar

from stages.backends.isolated import Starved, Worker
from stages.childprocess import Killed
from stages.cores import side_by_side
from stages.errors import BackendError

_PATIENCE_SECONDS = 0.5

Workers = tuple[Worker, ...]
"""One worker for each back end."""
Item = TypeVar("Item")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Crew:
    """Workers of some back ends, and more like them while there is much to do.

    A crew is a context manager; leaving it ends all children, at once after an exception. Back ends whose builder times
    kernels on the GPU do one thing at a time: what ran beside would falsify the times that it chooses by.

    Args:
        lead: one worker for each back end; they may be used directly while `map` does not run.
    """

    def __init__(self, *lead: Worker) -> None:
        self.lead: Workers = lead
        self._others: list[Workers] = []
        self._starting: list[threading.Thread] = []
        self._idle: queue.SimpleQueue[Workers] = queue.SimpleQueue()
        self._idle.put(lead)
        self._abandoned = False
        self._one_by_one = any(worker.backend.times_kernels for worker in lead)

    def __enter__(self) -> Crew:
        try:
            for worker in self.lead:
                worker.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:
            self._abandon()
        self._end()

    def map(self, do: Callable[[Workers, Item], Result], items: Sequence[Item]) -> list[Result]:
        """`do` for each of the items, with workers that nobody else uses meanwhile; the results in the items' order.

        `do` runs in threads. What got no answer while others ran is done again with nothing beside it. An exception ends
        all children at once, for good, and is raised when the threads have ended.
        """
        size = 1 if self._one_by_one else side_by_side(len(items))
        if size == 1:
            return [do(self.lead, item) for item in items]
        results: dict[int, Result] = {}
        threads = ThreadPoolExecutor(size)
        try:
            self._share(1 + len(self._others))
            # In a copy of the context: what they report is heard by whoever listens here.
            futures = [
                threads.submit(copy_context().run, self._run, do, item, n, results) for n, item in enumerate(items)
            ]
            unfinished = wait(futures, _PATIENCE_SECONDS, FIRST_EXCEPTION).not_done
            self._hire(min(len(unfinished), size) - 1)
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            self._abandon()
            raise
        finally:
            threads.shutdown(cancel_futures=True)
            self._share(1)
        for n, item in enumerate(items):
            if n not in results:
                self._release()
                results[n] = do(self.lead, item)
        return [results[n] for n in range(len(items))]

    def _run(self, do: Callable[[Workers, Item], Result], item: Item, n: int, results: dict[int, Result]) -> None:
        workers = self._idle.get()
        try:
            if self._abandoned:
                raise Killed
            results[n] = do(workers, item)
        except Starved as starved:
            log.info("%s; once again with nothing beside it", starved.__cause__)
        finally:
            self._idle.put(workers)

    def _hire(self, most: int) -> None:
        """Start others until there are so many; each is idle once its children run."""
        while len(self._others) < most:
            workers = tuple(worker.sibling() for worker in self.lead)
            self._others.append(workers)
            self._share(1 + len(self._others))
            thread = threading.Thread(target=self._start, args=(workers,), daemon=True)
            thread.start()
            self._starting.append(thread)

    def _start(self, workers: Workers) -> None:
        try:
            for worker in workers:
                worker.start()
            self._idle.put(workers)
        except Killed:
            pass
        except (BackendError, OSError) as error:
            log.info("no further %s beside the first: %s", ", ".join(w.backend.name for w in workers), error)

    def _share(self, count: int) -> None:
        for workers in (self.lead, *self._others):
            for worker in workers:
                worker.beside = count

    def _release(self) -> None:
        """Let the others give back their memory; they start again when they are asked something."""
        for workers in self._others:
            for worker in workers:
                worker.close()

    def _abandon(self) -> None:
        self._abandoned = True
        for workers in (self.lead, *self._others):
            for worker in workers:
                worker.abandon()

    def _end(self) -> None:
        for workers in self._others:
            for worker in workers:
                worker.abandon()
        for thread in self._starting:
            thread.join()
        for workers in (self.lead, *self._others):
            for worker in workers:
                worker.close()
