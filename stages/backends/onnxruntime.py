"""ONNX Runtime on the CPU: lets a model with engines run, and be verified, on a machine without a GPU.

Its plan is the region's ONNX model itself; large weights lie in files beside it, under the names that the model gives.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from stages.backends.base import BuildOptions, BuildOutcome, Refusal, Support, import_library, partial_path
from stages.onnx_files import files_beside
from stages.storage import link_or_copy

_UNIMPLEMENTED = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name '([^']*)'")


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    name: str = "onnxruntime"
    device: str = "cpu"
    suffix: str = ".onnx"
    times_kernels: bool = False

    def version(self) -> str:
        return str(import_library(self.name).__version__)

    def check(self, model: Path) -> Support:
        """Whether a session can be made. ONNX Runtime names at most the first node that it refuses."""
        failure = self._session_failure(model)
        if not failure:
            return Support(accepted=True)
        named = _UNIMPLEMENTED.search(failure)
        if named:
            return Support(accepted=False, refusals=(Refusal(named[2], named[1], failure),))
        return Support(accepted=False, failure=failure)

    def build(self, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
        """Copy `model` to `plan`, and its external data beside it, once a session could be made of it.

        Of the options only the precision matters, and it is written into the model already.
        """
        start = time.perf_counter()
        failure = self._session_failure(model)
        if not failure:
            for file in files_beside(model):
                if not (target := plan.with_name(file.name)).exists():
                    link_or_copy(file, target)
            partial = partial_path(plan)
            link_or_copy(model, partial)
            partial.replace(plan)
        return BuildOutcome(not failure, time.perf_counter() - start, failure)

    def _session_failure(self, model: Path) -> str:
        ort = import_library(self.name)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        # Its exceptions (Fail, InvalidGraph, NotImplemented, …) share no base class but Exception.
        except Exception as error:  # noqa: BLE001
            return str(error)
        return ""


BACKEND = OnnxRuntime()
