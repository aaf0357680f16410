"""The memory that a process and its children take, sampled from /proc while it runs."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_SECONDS = 0.05
_PARTS = ("Rss", "Pss", "Anonymous")


@dataclass(frozen=True, slots=True)
class Usage:
    """Peaks over a process tree, in bytes; each of its own moment.

    Attributes:
        rss: resident memory, summed over the processes: what several of them map counts several times.
        pss: the same with shared pages divided among those who share them: the physical memory that the tree holds,
            pages of files that it maps included (the kernel can drop these, they are a cache).
        anonymous: what lies in no file: heaps, stacks, private copies. The kernel can't drop it.
        seconds: wall time.
    """

    rss: int
    pss: int
    anonymous: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    usage: Usage
    returncode: int
    output: str


def run_measured(command: Sequence[str], *, timeout_seconds: float = 1800.0, **options: object) -> Measured:
    """Run a command and sample the memory of its whole process tree every 50 ms.

    Args:
        options: for `subprocess.Popen`; standard output is captured.

    Raises:
        subprocess.TimeoutExpired: it ran too long, and was killed.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:  # type: ignore[call-overload]
        peaks = dict.fromkeys(_PARTS, 0)
        with _sampling(process.pid, peaks):
            try:
                output, _ = process.communicate(timeout=timeout_seconds)
            except BaseException:
                process.kill()
                raise
    usage = Usage(peaks["Rss"], peaks["Pss"], peaks["Anonymous"], time.perf_counter() - start)
    return Measured(usage, process.returncode, output)


@contextlib.contextmanager
def _sampling(root: int, peaks: dict[str, int]) -> Iterator[None]:
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_INTERVAL_SECONDS):
            total = dict.fromkeys(_PARTS, 0)
            for pid in tree(root):
                for part, size in parts(pid).items():
                    total[part] += size
            for part, size in total.items():
                peaks[part] = max(peaks[part], size)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def tree(root: int) -> list[int]:
    """A process and its descendants, those in sessions of their own included."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def parts(pid: int) -> dict[str, int]:
    """What `smaps_rollup` says of a process, in bytes; nothing of one that has ended."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, _, rest = line.partition(":")
            if name in _PARTS:
                found[name] = int(rest.split()[0]) * 1024
    return found
