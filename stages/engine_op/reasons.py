"""Why an engine can't run: the keys of `stats()`'s fallbacks. Stable; details are in the log.

The kernel itself adds `no runtime` (the process has no Python, or is exiting) and `native only` (`native_only()`).
"""

from __future__ import annotations

from enum import Enum


class Reason(str, Enum):
    """A short reason; its value is the key."""

    FORMAT = "format version"
    NO_PLAN = "no plan"
    NO_GPU = "no usable GPU"
    NO_BACKEND = "backend not installed"
    PLAN_MISSING = "plan missing"
    PLAN_DAMAGED = "plan damaged"
    PLAN_REFUSED = "plan refused"
    MISMATCH = "interface mismatch"
    PROFILE = "shape outside the profiles"
    ENGINE_FAILED = "engine failed"
    VERSION = "library version"
    OUT_OF_MEMORY = "out of memory"


class CannotRun(Exception):
    """An engine can't be loaded or run; the kernel turns it into a fallback or an error, as its policy says."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
