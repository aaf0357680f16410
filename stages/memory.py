"""Memory of processes and of the machine, as Linux tells it."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def resident_mib(pid: int) -> float:
    """Resident memory of a process in MiB; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def available_mib(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = _CGROUP) -> float | None:
    """What can still be had without swapping, in MiB: the machine's, or what the container (cgroup v2) has left if that is
    less. None where nothing says so."""
    found: list[float] = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) / 2**10)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit, used = ((cgroup / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        if limit != "max":
            found.append(max(int(limit) - int(used), 0) / 2**20)
    except (OSError, ValueError):
        pass
    return min(found, default=None)
