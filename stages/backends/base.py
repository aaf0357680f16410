"""What a back end does: say what it takes, and compile it.

Queries and builds can kill their process, so stages never call a back end directly: they go through
`stages.backends.isolated.Worker`, which runs it in a child process with a time limit.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

from stages.artifacts import Profile
from stages.errors import BackendError

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")


@dataclass(frozen=True, slots=True)
class Library:
    """What a back end stands on: its import names, the oldest version that works, and how to install it."""

    modules: tuple[str, ...]
    oldest: tuple[int, int]
    remedy: str


LIBRARIES = {
    "tensorrt": Library(("tensorrt",), (10, 0), "pip install 'graftrt[tensorrt]'"),
    "tensorrt_rtx": Library(("tensorrt_rtx", "tensorrt_rtx_bindings"), (1, 4), "pip install 'tensorrt-rtx>=1.4'"),
    "onnxruntime": Library(("onnxruntime",), (1, 20), "pip install 'onnxruntime>=1.20'"),
}
"""By back end, the most wanted first."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One ONNX node that the parser refuses; `node` and `op_type` are empty where the parser names none."""

    node: str
    op_type: str
    message: str


@dataclass(frozen=True, slots=True)
class Support:
    """The parser's answer on one ONNX model.

    `shape_inputs` are inputs whose values decide shapes (TensorRT wants them on the host at build time).
    `failure` says why there is no answer: the child crashed, ran out of time, or an error that names no node.
    `bindings` are the inputs, then the outputs, as (name, dtype by TensorFlow's name): TensorRT turns float64 into
    float32. Empty where the back end does not say.
    """

    accepted: bool
    refusals: tuple[Refusal, ...] = ()
    shape_inputs: tuple[str, ...] = ()
    failure: str = ""
    bindings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """`workspace_mib` is in MiB (None: the library's default); `capabilities` are targets such as `8.6` (empty: the
    library's default set); the precision is already written into the ONNX model, except TF32, which is a flag."""

    precision: str = "fp32"
    profiles: tuple[Profile, ...] = ()
    workspace_mib: int | None = None
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """A build's result: where not `built`, `failure` holds the library's words (or that it crashed or timed out).

    `seconds` are those of the build; of the original build where the plan came from the engine cache (`cached`).
    `os_error` is the number of the operating system's error where the plan could not be written.
    """

    built: bool
    seconds: float
    failure: str = ""
    warnings: tuple[str, ...] = ()
    cached: bool = False
    os_error: int = 0


class Backend(Protocol):
    """One way to compile and run an ONNX model."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str:
        """`gpu` or `cpu`: where its engines run."""

    @property
    def suffix(self) -> str:
        """File ending of its plans, `.plan` or `.onnx`."""

    @property
    def times_kernels(self) -> bool:
        """Whether its builder times kernels on the GPU, so that nothing should run there beside it."""

    def version(self) -> str:
        """The library's version.

        Raises:
            BackendError: the library is not installed.
        """

    def check(self, model: Path) -> Support:
        """Ask which nodes of an ONNX model the library takes. May kill the process."""

    def build(self, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
        """Compile `model` into the file `plan`. May kill the process."""


def partial_path(plan: Path) -> Path:
    """Where a back end writes `plan` until it is complete; whoever sees the build fail removes this file."""
    return plan.with_name(f".{plan.name}.partial")


def import_library(name: str) -> ModuleType:
    """Import the library of back end `name`.

    Raises:
        BackendError: it is not installed, does not load, or is too old.
    """
    library = LIBRARIES[name]
    for module_name in library.modules:
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise BackendError(f"{name}: does not import: {error}", library.remedy) from error
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendError(f"{name}: does not import: {error}", library.remedy) from error
        else:
            if tuple(int(part) for part in module.__version__.split(".")[:2]) < library.oldest:
                oldest = ".".join(map(str, library.oldest))
                raise BackendError(f"{name}: version {module.__version__} is older than {oldest}", library.remedy)
            return module
    raise BackendError(f"{name}: is not installed", library.remedy)
