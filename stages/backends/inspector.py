"""The layers of built engines, as TensorRT's engine inspector names them. A plan opens only where its GPU is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from stages import backends
from stages.backends.base import import_library
from stages.backends.hardware import gpu_count

if TYPE_CHECKING:
    import tensorrt

_SECONDS = 120
_MARK = "layers: "


@dataclass(frozen=True, slots=True)
class Layers:
    """Names of an engine's layers in the order in which they run; `why_not` says why there are none."""

    names: tuple[str, ...] = ()
    why_not: str = ""


def engine_layers(backend: str, plans: Sequence[Path]) -> list[Layers]:
    """Open plans in a child process, for opening may kill it, and ask each for its layers."""
    if backends.get(backend).device != "gpu":
        return [Layers(why_not=f"{backend} has no engine inspector")] * len(plans)
    if not gpu_count():
        return [Layers(why_not="a plan for a GPU can't be opened on a machine without one")] * len(plans)
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; from stages.backends import inspector; inspector.main(*sys.argv[1:])"
    )
    command = [sys.executable, "-c", program, backend, *map(str, plans)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        return [Layers(why_not=f"the inspector did not end within {_SECONDS} s")] * len(plans)
    lines = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    answers = [Layers(tuple(names)) if names else Layers(why_not=why) for names, why in map(json.loads, lines)]
    words = done.stderr.strip().splitlines()
    lost = Layers(why_not=words[-1] if words else f"the inspector ended with status {done.returncode}")
    return answers + [lost] * (len(plans) - len(answers))


def main(backend: str, *plans: str) -> None:
    """The child's part: one line for each plan, with its layers' names or the reason why there are none."""
    trt = import_library(backend)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    for plan in plans:
        engine = runtime.deserialize_cuda_engine(Path(plan).read_bytes())
        names = _names(trt, engine) if engine is not None else []
        why = (
            "" if names else "the library can't open the plan here" if engine is None else "the engine names no layers"
        )
        print(_MARK + json.dumps([names, why]), flush=True)


def _names(trt: ModuleType, engine: tensorrt.ICudaEngine) -> list[str]:
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(told).get("Layers", [])
    return [str(layer.get("Name", layer)) if isinstance(layer, dict) else str(layer) for layer in layers]
