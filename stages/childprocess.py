"""A child process that answers requests, one line of JSON each, and both ends of the pipes to it.

Whatever happens to the child (a crash, a hang, too much memory), the parent gets to know and goes on. The child imports
what it is told to and nothing else: the user's `__main__` is not run again in it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import IO

from stages.memory import resident_mib

_START_SECONDS = 120.0
_WATCH_SECONDS = 0.1
_NOTE = b"~"
"""Begins a line that is no answer: JSON never does."""
_LAST_WORDS = 500
"""Bytes of the child's standard error that are quoted when it dies."""


class Lost(Exception):
    """The child gave no answer; the message says why."""


class Killed(Exception):
    """The child was killed on purpose, by another thread, and is not started again."""


class ChildProcess:
    """A process that is started again after it died. One thread uses it at a time; `kill` may be called by any.

    Ctrl-C goes to the parent alone, which ends the child on its way out; a child whose parent died ends by itself.

    Args:
        module: what the child imports, and calls the `main` of: that first answers with one line about itself, then once
            for every request (`serve`).
        argument: given to `main`.
        environment: what differs from the parent's.
    """

    def __init__(self, module: str, argument: str = "", *, environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._argument = argument
        self._environment = dict(environment or {})
        self._child: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._killed = False

    @property
    def pid(self) -> int | None:
        child = self._child
        return child.pid if child else None

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self, what: str, limit_mib: Callable[[], float | None]) -> bytes:
        """Start the child anew; what it says about itself. `what` and `limit_mib` as for `request`.

        Raises:
            Lost: it does not start.
            Killed: `kill` was called.
        """
        self.stop()
        program = f"import sys; sys.path[:] = {sys.path!r}; from {self._module} import main; main(sys.argv[1])"
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-c", program, self._argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **self._environment},
            start_new_session=True,
        )
        try:
            # `kill` sets the mark before it looks for a child: either it saw this one or the mark is seen here.
            if self._killed:
                raise Killed
            return self._read(self._child, _START_SECONDS, what, limit_mib)
        except BaseException:
            self.stop()
            raise

    def request(
        self,
        line: str,
        what: str,
        seconds: float,
        limit_mib: Callable[[], float | None],
        note: Callable[[bytes], None] | None = None,
    ) -> bytes:
        """The answer to one request; a child that gives none is ended.

        Args:
            what: what the child is, for messages.
            seconds: how long it may take.
            limit_mib: its resident memory in MiB above which it is ended, asked again and again; None: there is no limit.
            note: called with what the child says before it answers (see `serve`).

        Raises:
            Lost: there is no answer.
            Killed: `kill` was called.
        """
        if self._killed:
            raise Killed
        child = self._child
        assert child is not None
        assert child.stdin is not None
        try:
            # A child that died meanwhile shows at the read, which says how.
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(line.encode() + b"\n")
                child.stdin.flush()
            return self._read(child, seconds, what, limit_mib, note)
        except BaseException:
            self.stop()
            raise

    def kill(self) -> None:
        """End the child at once, for good: whoever waits for its answer gets `Killed`, and so does any later request."""
        self._killed = True
        _kill(self._child)

    def stop(self) -> None:
        """End the child; `start` starts another."""
        child, self._child = self._child, None
        if child is not None:
            _kill(child)
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    # Closing flushes, which fails when the reader is gone.
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        if self._stderr is not None:
            self._stderr.close()
            self._stderr = None

    def _read(
        self,
        child: subprocess.Popen[bytes],
        seconds: float,
        what: str,
        limit_mib: Callable[[], float | None],
        note: Callable[[bytes], None] | None = None,
    ) -> bytes:
        assert child.stdout is not None
        deadline = time.monotonic() + seconds
        pipe, line = child.stdout.fileno(), b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise Lost(f"the {what} did not end within {seconds:g} s")
            limit = limit_mib()
            if limit is not None and resident_mib(child.pid) > limit:
                raise Lost(f"the {what} took more than {limit:.0f} MiB of memory")
            if select.select([pipe], [], [], min(left, _WATCH_SECONDS))[0]:
                block = os.read(pipe, 1 << 16)
                if not block:
                    if self._killed:
                        raise Killed
                    raise Lost(self._obituary(child, what))
                line += block
                while line.startswith(_NOTE) and (end := line.find(b"\n") + 1):
                    if note is not None:
                        note(line[len(_NOTE) : end])
                    line = line[end:]
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


def serve(hello: Callable[[], str], answer: Callable[[str, Callable[[str], None]], str]) -> None:
    """In the child: say `hello`, answer every line of standard input with one line, and end when it ends.

    `answer` gets a function that tells the parent something meanwhile, in one short line; any thread may call it.

    Libraries print to the standard streams, so the pipes to the parent are moved off them first.
    """
    requests, answers = _take_pipes()
    _leave_with_parent()
    _send(answers, hello())
    with os.fdopen(requests, "r", encoding="utf-8") as lines:
        for line in lines:
            _send(answers, answer(line, lambda words: _send(answers, _NOTE.decode() + words)))
    # Destructors of a half-used library may crash, and nothing here needs them.
    os._exit(0)


def _take_pipes() -> tuple[int, int]:
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _leave_with_parent() -> None:
    """Ends this process when the parent has died, in the middle of a request too: nobody else would."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _send(answers: int, line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


def _kill(child: subprocess.Popen[bytes] | None) -> None:
    # It leads a group of its own. Not waited for yet, so nobody else can have its id.
    if child is not None and child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
