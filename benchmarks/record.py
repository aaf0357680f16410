"""Results on disk, with the machine and the versions that they were measured on."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path

from pipeline.versions import installed
from stages.backends.hardware import cpu_name

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
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": installed(PACKAGES),
    }
