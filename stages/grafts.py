"""A region and the EngineCall that replaces it: the op's inputs, its native segment, its interface."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import Engine, EngineSet, Region, Tensor
from stages.backends import get
from stages.graph import Graph
from stages.native import NativeSegment, native_segment
from stages.onnx_files import as_one_file, files_beside
from stages.profiles import onnx_inputs
from stages.regions import Cut, cut, in_host_memory, tensors

if TYPE_CHECKING:
    from stages.engine_op.interface import Interface


class PlanSource(str, Enum):
    """Where an EngineCall finds its plans: in files (assets of a SavedModel), or in the graph itself."""

    FILE = "file"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class Policy:
    """What an EngineCall does where no engine can run: see `engine_op.interface.Interface`."""

    on_failure: str = "native"
    build_at_runtime: bool = False


@dataclass(frozen=True, slots=True)
class Graft:
    """A region and what replaces it. `inputs` are the op's: in a body also what the engines have as constants."""

    region: Region
    engines: tuple[Engine, ...]
    boundary: Cut
    inputs: tuple[Tensor, ...]
    native: NativeSegment
    node: str

    def file(self, engine: Engine) -> str:
        """The name of a plan's file among the model's assets."""
        return f"{self.region.name}.{engine.file.name}"


def grafts_of(graph: Graph, engines: EngineSet, *, weights_inside: bool) -> Iterator[Graft]:
    taken = set(graph.number)
    for region in engines.partition.regions:
        own = tuple(engine for engine in engines.engines if engine.region == region.name)
        if not own or region.scope != graph.scope:
            continue
        boundary = cut(graph, [graph.number[name] for name in region.ops])
        native = native_segment(graph, boundary, f"graftrt_{region.name}_native", weights_inside=weights_inside)
        known = {tensor.name: tensor for tensor in region.inputs}
        inputs = tuple(known.get(tensor.name, tensor) for tensor in tensors(graph, boundary.inputs))
        yield Graft(region, own, boundary, inputs, native, _free(f"graftrt/{region.name}", taken))


def _free(name: str, taken: set[str]) -> str:
    unused = next(n for n in itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1))) if n not in taken)
    taken.add(unused)
    return unused


def embedded_plan(plan: Path) -> bytes:
    """A plan as one string of bytes, its weights inside."""
    return as_one_file(plan) if plan.suffix == ".onnx" and files_beside(plan) else plan.read_bytes()


def interface_of(graft: Graft, source: PlanSource, policy: Policy) -> Interface:
    # Importing the package loads the op into TensorFlow, which only stitching itself needs.
    from stages.engine_op.interface import Interface, Plan, Port

    region, embedded = graft.region, source is PlanSource.EMBEDDED
    bound = {name for name, _ in onnx_inputs(region)}
    positions = {tensor.name: f"input_{i}" for i, tensor in enumerate(region.inputs)}
    names = [positions.get(tensor.name) for tensor in graft.inputs]
    profiles = tuple(
        tuple((r.input, r.minimum, r.optimum, r.maximum) for r in profile if r.input in bound)
        for profile in region.profiles
    )
    return Interface(
        region=region.name,
        inputs=tuple(
            Port(
                name if name in bound else None,
                tensor.dtype,
                tensor.shape,
                "host" if in_host_memory(tensor) else "device",
            )
            for name, tensor in zip(names, graft.inputs, strict=True)
        ),
        outputs=tuple(Port(f"output_{i}", tensor.dtype, tensor.shape) for i, tensor in enumerate(region.outputs)),
        plans=tuple(
            Plan(
                engine.fingerprint.backend,
                get(engine.fingerprint.backend).device,
                engine.fingerprint.version,
                engine.fingerprint.precision,
                hashlib.sha256(embedded_plan(engine.file)).hexdigest() if embedded and engine.beside else engine.sha256,
                engine.bytes,
                engine.fingerprint.digest,
                engine.fingerprint.capabilities,
                # ONNX Runtime takes any size that the model takes.
                profiles if get(engine.fingerprint.backend).device == "gpu" else (),
                () if embedded else tuple(file.stem for file in engine.beside),
            )
            for engine in graft.engines
        ),
        storage=source.value,
        on_failure=policy.on_failure,
        build_at_runtime=policy.build_at_runtime,
    )
