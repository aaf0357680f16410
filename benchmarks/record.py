"""Results on disk, with the machine and the versions that they were measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "tensorflow",
    "tf2onnx",
    "onnx",
    "onnxruntime",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13-bindings",
    "tensorrt",
    "numpy",
)


def write(name: str, figures: dict[str, object], *, quietly: bool = False) -> None:
    """Write `results/<name>.json` and, unless `quietly`, print it."""
    record = {"benchmark": name, "date": datetime.date.today().isoformat(), "machine": machine(), "figures": figures}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text)
    if not quietly:
        print(text, end="")


def machine() -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), "versions": versions()}


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
