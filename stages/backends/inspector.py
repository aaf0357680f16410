"""The layers of built engines, as TensorRT's engine inspector tells them. A plan opens only where its GPU is.

What it tells differs by version and by how the plan was built: names only (strings in place of objects); `Format/Datatype`
of every tensor up to TensorRT 10, `Format` and `DataType` from 11 on; nothing of what lies inside a `ForeignNode`, of
which TensorRT for RTX makes most of a network. So everything is read that names a type, and what names none is `not told`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from stages import backends, recordjson
from stages.backends.base import import_library
from stages.backends.hardware import gpu_count
from stages.engine_types import TypedLayer

if TYPE_CHECKING:
    import tensorrt

_SECONDS = 300
_MARK = "layers: "
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TYPES = {
    "float8": re.compile(r"(?<![a-z0-9])(fp8|float8|e4m3)", re.IGNORECASE),
    "int8": re.compile(r"(?<![a-z0-9])int8(?![0-9])", re.IGNORECASE),
    "bfloat16": re.compile(r"(?<![a-z0-9])(bf16|bfloat16)", re.IGNORECASE),
    "float16": re.compile(r"(?<![a-z0-9])(fp16|half|float16)(?![a-z0-9])", re.IGNORECASE),
    "float32": re.compile(r"(?<![a-z0-9])(fp32|float32|float)(?![a-z0-9])", re.IGNORECASE),
}
_OPERANDS = re.compile(r"(?<![a-z0-9])(i8|e4m3|bf16|f16|f32)\1(?![a-z0-9])")
"""In the name of a kernel, as in `sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw`: what it multiplies."""
_OPERAND_TYPES = {"i8": "int8", "e4m3": "float8", "bf16": "bfloat16", "f16": "float16", "f32": "float32"}


@dataclass(frozen=True, slots=True)
class Layers:
    """An engine's layers in the order in which they run; `why_not` says why there are none."""

    layers: tuple[TypedLayer, ...] = ()
    why_not: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)


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
    answers = [recordjson.decode(Layers, json.loads(line), Path()) for line in lines]
    words = done.stderr.strip().splitlines()
    lost = Layers(why_not=words[-1] if words else f"the inspector ended with status {done.returncode}")
    return answers + [lost] * (len(plans) - len(answers))


def main(backend: str, *plans: str) -> None:
    """The child's part: one line for each plan, with its layers or the reason why there are none."""
    trt = import_library(backend)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    for plan in plans:
        engine = runtime.deserialize_cuda_engine(Path(plan).read_bytes())
        layers = parse_layers(_told(trt, engine)) if engine is not None else ()
        why = (
            "" if layers else "the library can't open the plan here" if engine is None else "the engine names no layers"
        )
        print(_MARK + json.dumps(asdict(Layers(layers, why))), flush=True)


def _told(trt: ModuleType, engine: tensorrt.ICudaEngine) -> str:
    """What the inspector says, as JSON. Of an engine with open axes it tells types only for a context with sizes."""
    inspector = engine.create_engine_inspector()
    context = engine.create_execution_context()
    if context is not None:
        for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parse_layers(text: str) -> tuple[TypedLayer, ...]:
    """The layers that `IEngineInspector.get_engine_information` tells of in JSON."""
    layers = json.loads(text).get("Layers", [])
    return tuple(_layer(entry) if isinstance(entry, dict) else TypedLayer(str(entry)) for entry in layers)


def _layer(entry: Mapping[str, object]) -> TypedLayer:
    name = str(entry.get("Name", entry))
    onnx = _ONNX_NODE.findall(str(entry.get("Metadata", ""))) or name.split(" + ")
    if "ForeignNode" in name or str(entry.get("LayerType", "")).startswith("Myelin"):
        return TypedLayer(name, tuple(onnx))  # its inputs are those of many fused layers
    operands = _OPERANDS.search(str(entry.get("TacticName", "")))
    found = [kind for words in _words(entry) for kind in _TYPES if _TYPES[kind].search(words)]
    found += [_OPERAND_TYPES[operands[1]]] if operands else []
    return TypedLayer(name, tuple(dict.fromkeys(onnx)), tuple(dict.fromkeys(found)))


def _words(entry: Mapping[str, object]) -> Iterator[str]:
    """Descriptions of what a layer reads: its inputs and weights. What it writes may be cast already."""
    inputs = entry.get("Inputs")
    for tensor in inputs if isinstance(inputs, list) else []:
        if isinstance(tensor, dict):
            yield " ".join(str(tensor.get(key, "")) for key in ("DataType", "Datatype", "Format/Datatype", "Format"))
    weights = entry.get("Weights")
    if isinstance(weights, dict):
        yield str(weights.get("Type", ""))
