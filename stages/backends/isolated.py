"""Support queries and builds in a child process: a crash, a hang or too much memory costs one region, not the run."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

from stages import backends, progress
from stages.backends import messages
from stages.backends.base import BuildOptions, BuildOutcome, Support, partial_path
from stages.childprocess import ChildProcess, Lost
from stages.errors import BackendError
from stages.memory import available_mib

_SHARE = 0.9
"""Of the available memory, what a child may take where no limit is given."""


class Starved(Exception):
    """A child gave no answer while others ran beside it: alone it might have had the memory or the time."""


class Worker:
    """One back end in a persistent child process, started again after it died.

    Threads may share a worker (requests queue), and several workers may run side by side. A worker is a context
    manager; leaving it ends the child, at once after an exception. Ctrl-C goes to the parent alone, which ends the child
    on its way out.

    Args:
        backend: the back end's name.
        time_limit_seconds: for one request; then the child is killed. Starting the child does not count.
        memory_limit_mib: resident memory of the child, in MiB, above which it is killed; None: nine tenths of what was
            available when it started, so that it does not take the parent or its neighbours along.

    Attributes:
        beside: how many such workers run at the same time; they share what is available. With more than one, a request
            without an answer raises `Starved`.
    """

    def __init__(self, backend: str, *, time_limit_seconds: float = 600.0, memory_limit_mib: int | None = None) -> None:
        self.backend = backends.get(backend)
        self.time_limit_seconds = time_limit_seconds
        self.memory_limit_mib = memory_limit_mib
        self.beside = 1
        self._lock = threading.RLock()
        self._child = ChildProcess("stages.backends.child", backend)
        self._version = ""
        self._available_mib: float | None = None

    def __enter__(self) -> Worker:
        with self._lock:
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None:
            self.abandon()
        self.close()

    def close(self) -> None:
        """End the child, after the request that it is at. A later request starts another."""
        with self._lock:
            self._child.stop()

    def abandon(self) -> None:
        """End the child at once, whatever it is at: for any thread. Requests running or made later raise `Killed`."""
        self._child.kill()

    def start(self) -> None:
        """Start the child if none runs.

        Raises:
            BackendError: the library is missing or does not load.
        """
        with self._lock:
            self._start()

    @property
    def version(self) -> str:
        """The library's version.

        Raises:
            BackendError: the library is missing or does not load.
        """
        if not self._version:
            self.start()
        return self._version

    @property
    def pid(self) -> int | None:
        """The child's process id; None before the first request and after `close`."""
        return self._child.pid

    def sibling(self) -> Worker:
        """Another worker like this one, with a child of its own once it is asked something."""
        other = Worker(
            self.backend.name, time_limit_seconds=self.time_limit_seconds, memory_limit_mib=self.memory_limit_mib
        )
        other._version = self._version
        return other

    def check(self, model: Path) -> Support:
        """`Backend.check` in the child; no answer becomes `Support.failure`.

        Raises:
            BackendError: the library is missing or does not load.
            Starved: there is no answer, and other workers run beside this one.
        """
        with self._lock:
            try:
                return messages.decode_answer(Support, self._request(messages.encode_check(model.absolute()), "parser"))
            except Lost as lost:
                self._blame_neighbours(lost)
                return Support(accepted=False, failure=str(lost))

    def build(self, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
        """`Backend.build` in the child; no answer becomes `BuildOutcome.failure`, and a failure leaves no `plan`.

        Raises:
            BackendError: the library is missing or does not load.
            OSError: the plan can't be written: that says nothing about the model.
            Starved: there is no answer, and other workers run beside this one.
        """
        model, plan = model.absolute(), plan.absolute()
        reports = progress.listener() is not None
        start = time.perf_counter()
        with self._lock:
            try:
                outcome = messages.decode_answer(
                    BuildOutcome, self._request(messages.encode_build(model, plan, options, reports=reports), "builder")
                )
            except Lost as lost:
                self._blame_neighbours(lost)
                outcome = BuildOutcome(False, time.perf_counter() - start, str(lost))
            finally:
                partial_path(plan).unlink(missing_ok=True)
        if not outcome.built:
            plan.unlink(missing_ok=True)
        if outcome.os_error:
            raise OSError(outcome.os_error, os.strerror(outcome.os_error), str(plan))
        return outcome

    def _request(self, line: str, what: str) -> bytes:
        self._start()
        return self._child.request(line, what, self.time_limit_seconds, self._limit_mib, _pass_on)

    def _blame_neighbours(self, lost: Lost) -> None:
        if self.beside > 1:
            raise Starved from lost

    def _limit_mib(self) -> float | None:
        limit = self._available_mib
        return self.memory_limit_mib or (None if limit is None else limit / self.beside)

    def _start(self) -> None:
        if self._child.alive:
            return
        available = available_mib()
        self._available_mib = None if available is None else _SHARE * available
        try:
            hello = json.loads(self._child.start("back end", self._limit_mib))
        except Lost as lost:
            raise BackendError(f"{self.backend.name}: does not start: {lost}", "reinstall the library") from lost
        if "problem" in hello:
            self._child.stop()
            raise BackendError(hello["problem"], hello["remedy"])
        self._version = hello["version"]


def _pass_on(line: bytes) -> None:
    share, words = messages.decode_report(line)
    progress.report(share, 1.0, words)
