"""The back ends by name, and which of them this machine has.

No library is loaded here into the calling process: TensorRT and TensorRT for RTX do not share a process, and
TensorFlow is already in this one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import subprocess
import sys
from typing import cast

from stages.backends.base import LIBRARIES, Backend
from stages.backends.hardware import gpu_count
from stages.errors import BackendError

_TENSORRT = ("tensorrt", "tensorrt_rtx")
_PROBE_SECONDS = 120
"""A first import from a cold network disk takes long."""


def get(name: str) -> Backend:
    """The back end `name`; its library is imported when it is first asked something.

    Raises:
        BackendError: there is no back end of that name.
    """
    if name not in LIBRARIES:
        raise BackendError(f"{name}: is no back end", f"name one of {', '.join(LIBRARIES)}")
    return cast(Backend, importlib.import_module(f"stages.backends.{name}").BACKEND)


def available() -> tuple[str, ...]:
    """Names of the back ends whose library is installed, recent enough and loads."""
    return tuple(name for name in LIBRARIES if not why_missing(name))


def choose(requested: str = "auto") -> tuple[str, ...]:
    """The back ends to build for, the most wanted first.

    `auto` is the TensorRT that is there (TensorRT before TensorRT for RTX), and ONNX Runtime too on a machine
    without a GPU. Else `requested` is one name, or several with commas between.

    Raises:
        BackendError: a back end that was asked for is unknown or missing; or, for `auto`, there is no TensorRT.
    """
    if requested != "auto":
        names = tuple(dict.fromkeys(name.strip() for name in requested.split(",")))
        for name in names:
            get(name)
            if problem := why_missing(name):
                raise BackendError(problem, LIBRARIES[name].remedy)
        return names
    problems: dict[str, str] = {}
    for name in _TENSORRT:
        if problem := why_missing(name):
            problems[name] = problem
            continue
        on_cpu = gpu_count() == 0 and not why_missing("onnxruntime")
        return (name, "onnxruntime") if on_cpu else (name,)
    raise BackendError(
        "no TensorRT here: " + "; ".join(problems.values()),
        ", or ".join(LIBRARIES[name].remedy for name in reversed(_TENSORRT)),
    )


@functools.cache
def why_missing(name: str) -> str:
    """Why the library of back end `name` can't be used, or an empty string; tried in a process of its own."""
    if not any(importlib.util.find_spec(module) for module in LIBRARIES[name].modules):
        return f"{name}: is not installed"
    program = f"import sys; sys.path[:] = {sys.path!r}; from stages import backends; backends.get({name!r}).version()"
    try:
        probe = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"{name}: its import did not end within {_PROBE_SECONDS} s"
    if probe.returncode == 0:
        return ""
    words = [line for line in probe.stderr.splitlines() if line.strip()]
    stated = [line.partition("BackendError: backend: ")[2] for line in words if "BackendError: backend: " in line]
    return stated[-1] if stated else f"{name}: its import failed: {words[-1] if words else probe.returncode}"
