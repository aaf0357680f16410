"""ONNX Runtime on the CPU: lets a model with engines run, and be verified, on a machine without a GPU.

Its plan is the region's ONNX model itself, as one file.
"""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from stages.backends.base import BuildOptions, BuildOutcome, Refusal, Support, import_library, partial_path

_ONE_FILE_BYTES = 2_000_000_000
"""protobuf's limit for one message is 2 GiB."""
_UNIMPLEMENTED = re.compile(r"Could not find an implementation for (\w+)\(\d+\) node with name '([^']*)'")


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime's CPU provider."""

    name: str = "onnxruntime"
    device: str = "cpu"
    suffix: str = ".onnx"

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
        """Copy `model` to `plan`, with external data put inside, once a session could be made of it.

        Of the options only the precision matters, and it is written into the model already.
        """
        start = time.perf_counter()
        failure = self._session_failure(model) or _copy_as_one_file(model, plan)
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


def _copy_as_one_file(model: Path, plan: Path) -> str:
    """Returns why it can't be done, or an empty string."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    proto = onnx.load(model, load_external_data=False)
    external = {
        entry.value
        for tensor in proto.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    partial = partial_path(plan)
    if not external:
        shutil.copyfile(model, partial)
    else:
        size = model.stat().st_size + sum((model.parent / name).stat().st_size for name in external)
        if size > _ONE_FILE_BYTES:
            return f"the model's {size / 1e9:.1f} GB do not fit into one ONNX file"
        partial.write_bytes(onnx.load(model).SerializeToString())
    partial.replace(plan)
    return ""


BACKEND = OnnxRuntime()
