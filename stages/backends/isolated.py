"""Support queries and builds in a child process: a crash, a hang or too much memory costs one region, not the run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from stages import backends
from stages.backends import messages
from stages.backends.base import BuildOptions, BuildOutcome, Support, partial_path
from stages.backends.memory import available_mib, resident_mib
from stages.errors import BackendError

_START_SECONDS = 120.0
_WATCH_SECONDS = 0.1
_SHARE = 0.9
"""Of the available memory, what a child may take where no limit is given."""
_LAST_WORDS = 500
"""Bytes of the child's standard error that are quoted when it dies."""


class _Lost(Exception):
    """The child gave no answer; the message says why."""


class Worker:
    """One back end in a persistent child process, started again after it died.

    Threads may share a worker (requests queue), and several workers may run side by side. A worker is a context
    manager; leaving it ends the child. Ctrl-C goes to the parent alone, which ends the child on its way out.

    Args:
        backend: the back end's name.
        time_limit_seconds: for one request; then the child is killed. Starting the child does not count.
        memory_limit_mib: resident memory of the child, in MiB, above which it is killed; None: nine tenths of what was
            available when it started, so that it does not take the parent or its neighbours along.
    """

    def __init__(self, backend: str, *, time_limit_seconds: float = 600.0, memory_limit_mib: int | None = None) -> None:
        self.backend = backends.get(backend)
        self.time_limit_seconds = time_limit_seconds
        self.memory_limit_mib = memory_limit_mib
        self._lock = threading.RLock()
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._version = ""
        self._available_mib: float | None = None

    def __enter__(self) -> Worker:
        with self._lock:
            self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child. A later request starts another."""
        with self._lock:
            self._stop()

    @property
    def version(self) -> str:
        """The library's version.

        Raises:
            BackendError: the library is missing or does not load.
        """
        with self._lock:
            self._start()
            return self._version

    @property
    def pid(self) -> int | None:
        """The child's process id; None before the first request and after `close`."""
        child = self._child
        return child.pid if child else None

    def check(self, model: Path) -> Support:
        """`Backend.check` in the child; no answer becomes `Support.failure`.

        Raises:
            BackendError: the library is missing or does not load.
        """
        with self._lock:
            try:
                return messages.decode_answer(Support, self._request(messages.encode_check(model.absolute()), "parser"))
            except _Lost as lost:
                return Support(accepted=False, failure=str(lost))

    def build(self, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
        """`Backend.build` in the child; no answer becomes `BuildOutcome.failure`, and a failure leaves no `plan`.

        Raises:
            BackendError: the library is missing or does not load.
            OSError: the plan can't be written: that says nothing about the model.
        """
        model, plan = model.absolute(), plan.absolute()
        start = time.perf_counter()
        with self._lock:
            try:
                outcome = messages.decode_answer(
                    BuildOutcome, self._request(messages.encode_build(model, plan, options), "builder")
                )
            except _Lost as lost:
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
        child = self._child
        assert child is not None
        assert child.stdin is not None
        try:
            # A child that died meanwhile shows at the read, which says how.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(line.encode() + b"\n")
                child.stdin.flush()
            return self._read(child, self.time_limit_seconds, what)
        except BaseException:
            self._stop()
            raise

    def _start(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        self._stop()
        program = f"import sys; sys.path[:] = {sys.path!r}; from stages.backends import child; child.main(sys.argv[1])"
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        available = available_mib()
        self._available_mib = None if available is None else _SHARE * available
        self._child = subprocess.Popen(
            [sys.executable, "-c", program, self.backend.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            start_new_session=True,
        )
        try:
            hello = json.loads(self._read(self._child, _START_SECONDS, "back end"))
        except _Lost as lost:
            self._stop()
            raise BackendError(f"{self.backend.name}: does not start: {lost}", "reinstall the library") from lost
        except BaseException:
            self._stop()
            raise
        if "problem" in hello:
            self._stop()
            raise BackendError(hello["problem"], hello["remedy"])
        self._version = hello["version"]

    def _read(self, child: subprocess.Popen[bytes], seconds: float, what: str) -> bytes:
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        pipe, line = child.stdout.fileno(), b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Lost(f"the {what} did not end within {seconds:g} s")
            limit = self.memory_limit_mib or self._available_mib
            if limit is not None and resident_mib(child.pid) > limit:
                raise _Lost(f"the {what} took more than {limit:.0f} MiB of memory")
            if select.select([pipe], [], [], min(left, _WATCH_SECONDS))[0]:
                block = os.read(pipe, 1 << 16)
                if not block:
                    raise _Lost(self._obituary(child, what))
                line += block
        return line

    def _obituary(self, child: subprocess.Popen[bytes], what: str) -> str:
        status = child.wait()
        words = self._last_words()
        if status == -signal.SIGKILL:
            return f"the {what} was killed (signal 9), perhaps for want of memory{words}"
        if status < 0:
            return f"the {what} crashed (signal {-status}, {signal.Signals(-status).name}){words}"
        return f"the {what} ended with status {status}{words}"

    def _last_words(self) -> str:
        if self._stderr is None:
            return ""
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_WORDS))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            # It leads a group of its own. Not waited for yet, so nobody else can have its id.
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    # Closing flushes, which fails when the reader is gone.
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None
