"""What is installed, what works, and what to do about what doesn't."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from stages import backends
from stages.artifacts import ShapeRange
from stages.backends.base import LIBRARIES, BuildOptions
from stages.backends.hardware import Gpu, driver_version, gpus
from stages.backends.isolated import Worker
from stages.errors import ConversionError
from stages.userdir import user_cache_dir

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 13)
TENSORFLOW = "2.21"
LEAST_FREE_GIB = 2.0


class State(str, Enum):
    """`PROBLEM` keeps conversions from working, `NOTE` does not."""

    FINE = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at; `remedy` is empty where nothing is to be done."""

    subject: str
    state: State
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything that a conversion and a stitched model need, on this machine; takes seconds, since each back end
    builds a small model and the op is compiled if it was not yet."""
    looks: list[Callable[[], Iterator[Finding]]] = [_python, _tensorflow, _packages, _backends, _gpus, _op, _cache]
    return [finding for look in looks for finding in look()]


def _python() -> Iterator[Finding]:
    version = sys.version_info[:2]
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if platform.system() != "Linux":
        yield Finding("Python", State.PROBLEM, detail, "GraftRT runs on Linux")
    elif not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        yield Finding("Python", State.PROBLEM, detail, "use Python 3.10 to 3.13")
    else:
        yield Finding("Python", State.FINE, detail)


def _tensorflow() -> Iterator[Finding]:
    remedy = f"pip install 'tensorflow=={TENSORFLOW}.*'"
    try:
        import tensorflow as tf
    except ImportError as error:
        yield Finding("TensorFlow", State.PROBLEM, f"can't be imported: {error}", remedy)
        return
    version = str(tf.__version__)
    supported = version.startswith(f"{TENSORFLOW}.")
    built = "with CUDA" if tf.test.is_built_with_cuda() else "for CPUs only"
    yield Finding(
        "TensorFlow",
        State.FINE if supported else State.PROBLEM,
        f"{version}, built {built}",
        "" if supported else remedy,
    )
    seen = len(tf.config.list_physical_devices("GPU"))
    there = len(gpus())
    if there and not seen:
        yield Finding(
            "TensorFlow",
            State.NOTE,
            f"sees none of this machine's {there} GPUs: engines would run nowhere",
            "pip install 'tensorflow[and-cuda]'",
        )


def _packages() -> Iterator[Finding]:
    from stages.translate.library import check_internals

    try:
        check_internals()
        yield Finding("tf2onnx", State.FINE, importlib.metadata.version("tf2onnx"))
    except ConversionError as error:
        yield Finding("tf2onnx", State.PROBLEM, error.problem, error.remedy)
    for package, needed in (("onnx", True), ("onnx-graphsurgeon", True), ("cuda-python", False), ("tf_keras", False)):
        try:
            yield Finding(package, State.FINE, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            state = State.PROBLEM if needed else State.NOTE
            yield Finding(package, state, "is not installed", f"pip install {package}")


def _backends() -> Iterator[Finding]:
    works = []
    for name in LIBRARIES:
        if problem := backends.why_missing(name):
            yield Finding(name, State.NOTE, problem.removeprefix(f"{name}: "), LIBRARIES[name].remedy)
            continue
        finding = _try_backend(name)
        works += [name] if finding.state is State.FINE else []
        yield finding
    if not {"tensorrt", "tensorrt_rtx"} & set(works):
        yield Finding("back ends", State.PROBLEM, "no TensorRT works here", LIBRARIES["tensorrt_rtx"].remedy)


def _try_backend(name: str) -> Finding:
    """Build a model of two nodes."""
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["rows", 4]) for n in ("x", "y"))
    nodes = [helper.make_node("Exp", ["x"], ["e"]), helper.make_node("Neg", ["e"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "trial", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        profile = (ShapeRange("x", (1, 4), (2, 4), (8, 4)),)
        try:
            with Worker(name, time_limit_seconds=120) as worker:
                outcome = worker.build(path, Path(folder) / "plan", BuildOptions(profiles=(profile,)))
                version = worker.version
        except ConversionError as error:
            return Finding(name, State.PROBLEM, error.problem, error.remedy)
    if not outcome.built:
        return Finding(name, State.PROBLEM, f"{version} can't build a small model: {outcome.failure}", "reinstall it")
    return Finding(name, State.FINE, f"{version}, built a small model in {outcome.seconds:.1f} s")


def _gpus() -> Iterator[Finding]:
    found = gpus()
    if not found:
        yield Finding("GPU", State.NOTE, "none: plans are built ahead of time, and models run on the CPU's engines")
        return
    for gpu in found:
        yield Finding(
            "GPU", State.FINE, f"{gpu.name}, compute capability {gpu.capability}, driver for CUDA {driver_version()}"
        )
        yield from _known_troubles(gpu)


def _known_troubles(gpu: Gpu) -> Iterator[Finding]:
    """Combinations that were seen not to work (docs/gpu.md)."""
    if backends.why_missing("tensorrt_rtx"):
        return
    with Worker("tensorrt_rtx") as worker:
        version = tuple(int(part) for part in worker.version.split(".")[:2])
    if gpu.capability == "9.0" and version >= (1, 7):
        yield Finding(
            "tensorrt_rtx",
            State.NOTE,
            f"{version[0]}.{version[1]} loads no plan on compute capability 9.0",
            "pip install 'tensorrt-rtx>=1.4,<1.7', or TensorRT: pip install 'graftrt[tensorrt]'",
        )
    if version < (1, 7) and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        yield Finding(
            "tensorrt_rtx",
            State.NOTE,
            f"{version[0]}.{version[1]} was seen to compute fp32 engines in TF32 (errors of 3e-4)",
            "set NVIDIA_TF32_OVERRIDE=0 when converting and when serving",
        )


def _op() -> Iterator[Finding]:
    from stages.engine_op import compile as compiling

    try:
        command = compiling.compiler()
        yield Finding("compiler", State.FINE, " ".join(command))
    except ConversionError as error:
        yield Finding("compiler", State.NOTE, error.problem, error.remedy)
    try:
        from stages import engine_op

        engine_op.load()
        yield Finding("EngineCall op", State.FINE, "compiled for this TensorFlow and loaded")
    except ConversionError as error:
        yield Finding("EngineCall op", State.PROBLEM, error.problem, error.remedy)


def _cache() -> Iterator[Finding]:
    try:
        folder = user_cache_dir()
    except ConversionError as error:
        yield Finding("cache", State.PROBLEM, error.problem, error.remedy)
        return
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**30
    free = shutil.disk_usage(folder).free / 2**30
    short = free < LEAST_FREE_GIB
    yield Finding(
        "cache",
        State.NOTE if short else State.FINE,
        f"{folder}: {used:.1f} GiB used, {free:.0f} GiB free",
        "free some disk space, or set GRAFTRT_CACHE_DIR to another disk" if short else "",
    )
