"""What a back end does: say what it takes, and compile it.

Queries and builds can kill their process, so stages never call a back end directly: they go through
`stages.backends.isolated.Worker`, which runs it in a child process with a time limit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stages.artifacts import Profile

PRECISIONS = ("fp32", "tf32", "fp16")


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
    """

    accepted: bool
    refusals: tuple[Refusal, ...] = ()
    shape_inputs: tuple[str, ...] = ()
    failure: str = ""


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
    """A build's result: where not `built`, `failure` holds the library's words (or that it crashed or timed out)."""

    built: bool
    seconds: float
    failure: str = ""
    warnings: tuple[str, ...] = field(default=())


class Backend(Protocol):
    """One way to compile and run an ONNX model."""

    name: str
    device: str
    """`gpu` or `cpu`: where its engines run."""
    suffix: str
    """File ending of its plans, `.plan` or `.onnx`."""

    def version(self) -> str:
        """The library's version.

        Raises:
            BackendError: the library is not installed.
        """

    def check(self, model: Path) -> Support:
        """Ask which nodes of an ONNX model the library takes. May kill the process."""

    def build(self, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
        """Compile `model` into the file `plan`. May kill the process."""
