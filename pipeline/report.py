"""What a conversion did: `report.json`. Keys may be added, never renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.reasons import lines as reason_lines
from stages import recordjson
from stages.artifacts import EngineSet, Fingerprint, FrozenGraph, LeftOp, Profile, Reason, ShapeRange, Tensor, layer_of
from stages.bodies import find
from stages.errors import ArtifactError
from stages.graph import Graph
from stages.sizes import SizeRange

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One engine. `bytes` is the plan's size; `verified` is `executed` or `not run here`; `note` says why its precision is
    not the one asked for."""

    backend: str
    precision: str
    fingerprint: Fingerprint
    bytes: int
    build_seconds: float
    verified: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class RegionReport:
    """One region. `ops` are the names of its TensorFlow ops in the whole model; the errors are of its fp32 ONNX model
    against TensorFlow; `profiles` are the sizes that its engines are built for."""

    name: str
    ops: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    engines: tuple[EngineReport, ...]
    max_abs_error: float | None
    max_rel_error: float | None
    profiles: tuple[Profile, ...] = ()


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output is from TensorFlow's: `max_rel_error` is max|a−b| / max|b|, infinite (null in JSON) where
    they can't be compared; `why` says so then."""

    name: str
    max_abs_error: float
    max_rel_error: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """The stitched model against pure TensorFlow.

    Attributes:
        inputs: one entry per run: shape by input.
        engines_run: engine calls made.
        fallbacks: native segments that ran instead, by region and reason; any fails the verification.
        passed: None where verification was not asked for.
    """

    inputs: tuple[dict[str, list[int]], ...]
    outputs: tuple[OutputError, ...]
    engines_run: int
    fallbacks: dict[str, dict[str, int]]
    passed: bool | None
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class StageTime:
    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """A conversion. `ops_total` counts the ops that compute (not constants and what folds into them), also in the bodies
    of the branches and loops that TensorFlow runs. `sizes` are what the model was converted for, by the signature's
    inputs: one range of an input for each profile."""

    model: str
    backend: str
    precision: str
    ops_total: int
    ops_in_engines: int
    regions: tuple[RegionReport, ...]
    left_in_tensorflow: tuple[LeftOp, ...]
    verification: Verification
    stages: tuple[StageTime, ...]
    signature: str = "serving_default"
    schema_version: int = SCHEMA_VERSION
    sizes: tuple[ShapeRange, ...] = ()

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(recordjson.encode(self, path.parent), indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Report:
        """Read a `report.json`.

        Raises:
            ArtifactError: it is missing, damaged, or of a newer schema version.
        """
        try:
            body = json.loads(path.read_text())
            if body["schema_version"] > SCHEMA_VERSION:
                raise ArtifactError(f"{path}: has schema version {body['schema_version']}", "upgrade graftrt")
            return recordjson.decode(Report, body, path.parent)
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: no such file", "give the folder that convert wrote") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: is damaged: {error}", "convert the model again") from error

    def summary(self) -> str:
        """A few lines for a terminal."""
        share = self.ops_in_engines / self.ops_total if self.ops_total else 0.0
        lines = [
            f"{self.ops_in_engines} of {self.ops_total} ops ({share:.1%}) in {_count(len(self.regions), 'engine')}"
        ]
        for region in self.regions:
            engines = ", ".join(
                f"{e.backend} {e.precision} {e.bytes / 1e6:.1f} MB ({e.verified}{'; ' + e.note if e.note else ''})"
                for e in region.engines
            )
            lines.append(f"  {region.name}: {_count(len(region.ops), 'op')}: {engines}")
        lines += [f"  {line}" for line in reason_lines(self.left_in_tensorflow)]
        check = self.verification
        if check.passed is None:
            lines.append("not verified")
        else:
            worst = max((output.max_rel_error for output in check.outputs), default=0.0)
            lines.append(
                f"verified against TensorFlow: largest relative error {worst:.1e} (allowed {check.tolerance:.0e}), "
                f"{_count(check.engines_run, 'engine call')}, {_count(_fallbacks(check.fallbacks), 'fallback')}"
            )
        return "\n".join(lines)


def make_report(
    model: str,
    engines: EngineSet,
    precision: str,
    verification: Verification,
    seconds: Mapping[str, float],
    *,
    ranges: Sequence[SizeRange] = (),
) -> Report:
    """The report of a conversion from its artifacts; `ranges` are the profiles of the whole model."""
    partition = engines.partition
    failed = {region.region: region.reason for region in engines.failed}
    built = [region for region in partition.regions if region.name not in failed]
    nodes = {scope: _nodes(partition.frozen, scope) for scope in {region.scope for region in partition.regions}}
    ops = {region.name: [nodes[region.scope][op] for op in region.ops] for region in partition.regions}
    left = list(partition.left)
    for region in partition.regions:
        if region.name in failed:
            left += [LeftOp(n, op, layer_of(n), Reason.BUILD_FAILED, failed[region.name]) for n, op in ops[region.name]]
    regions = tuple(
        RegionReport(
            region.name,
            tuple(name for name, _ in ops[region.name]),
            region.inputs,
            region.outputs,
            tuple(
                EngineReport(
                    e.fingerprint.backend,
                    e.fingerprint.precision,
                    e.fingerprint,
                    e.bytes,
                    e.build_seconds,
                    e.verified,
                    e.note,
                )
                for e in engines.engines
                if e.region == region.name
            ),
            region.max_abs_error,
            region.max_rel_error,
            region.profiles,
        )
        for region in built
    )
    return Report(
        model=model,
        backend=partition.backend,
        precision=precision,
        ops_total=partition.ops_total,
        ops_in_engines=sum(len(region.ops) for region in built),
        regions=regions,
        left_in_tensorflow=tuple(left),
        verification=verification,
        stages=tuple(StageTime(name, value) for name, value in seconds.items()),
        signature=partition.frozen.source.signature,
        sizes=tuple(
            ShapeRange(name, entry.minimum.shapes[i], entry.optimum.shapes[i], entry.maximum.shapes[i])
            for i, name in enumerate(partition.frozen.input_names)
            for entry in ranges
        ),
    )


def _nodes(frozen: FrozenGraph, scope: str) -> dict[str, tuple[str, str]]:
    """The nodes of the frozen graph, or of a branch or loop body: their names in the whole model, and their types."""
    if not scope:
        return {node.name: (node.name, node.op) for node in frozen.graph_def().node}
    graph = find(Graph(frozen), scope)
    return {name: (graph.full_name(name), node.op) for name, node in graph.node_defs.items()}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _fallbacks(fallbacks: Mapping[str, Mapping[str, int]]) -> int:
    return sum(sum(by_reason.values()) for by_reason in fallbacks.values())
