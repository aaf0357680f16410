"""What the committed table depends on."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = (
    "stages/translate/expand/*.py",
    "stages/translate/handlers*",
    "stages/translate/handlers/*.py",
    "stages/translate/unsafe.py",
    "benchmarks/coverage/cases.py",
    "benchmarks/coverage/check.py",
    "benchmarks/coverage/inputs.py",
    "benchmarks/coverage/models.py",
    "benchmarks/coverage/scope.py",
)
"""What translates single ops, and what measures it. Not the rest of `stages/translate`, which concerns whole graphs."""


def digest() -> str:
    """SHA-256 (hex) over the sources on which the coverage table depends."""
    total = hashlib.sha256()
    for file in sorted({file for pattern in SOURCES for file in ROOT.glob(pattern) if file.is_file()}):
        total.update(f"{file.relative_to(ROOT).as_posix()}\0".encode())
        total.update(file.read_bytes() + b"\0")
    return total.hexdigest()
