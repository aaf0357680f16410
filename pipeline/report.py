"""What a conversion did: `report.json`. Keys may be added, never renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.reasons import lines as reason_lines
from stages import recordjson
from stages.artifacts import (
    Choice,
    EngineSet,
    EngineTypes,
    Fingerprint,
    FrozenGraph,
    KeptHigher,
    LeftOp,
    Profile,
    Reason,
    ShapeRange,
    Tensor,
    layer_of,
)
from stages.bodies import find
from stages.errors import ArtifactError
from stages.graph import Graph
from stages.sizes import SizeRange

SCHEMA_VERSION = 1
_KEPT_SHOWN = 5


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One engine. `bytes` is the plan's size; `verified` is `executed` or `not run here`; `note` says why its precision is
    not the one asked for, `types` whether it computes in what was asked for."""

    backend: str
    precision: str
    fingerprint: Fingerprint
    bytes: int
    build_seconds: float
    verified: str
    note: str = ""
    types: EngineTypes | None = None


@dataclass(frozen=True, slots=True)
class RegionReport:
    """One region. `ops` are the names of its TensorFlow ops in the whole model; the errors are of its fp32 ONNX model
    against TensorFlow; `profiles` are the sizes that its engines are built for.

    What `precision="auto"` chose: `precisions` are the numbers of its ops by precision, `kept_higher` the layers that are not in
    the fastest of them, `auto_error` the model's error by the metric with the regions up to this one as chosen (None: all of
    it is in fp32), `evaluations` how many assignments were tried, `auto_note` what limited the choice.
    """

    name: str
    ops: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    engines: tuple[EngineReport, ...]
    max_abs_error: float | None
    max_rel_error: float | None
    profiles: tuple[Profile, ...] = ()
    precisions: dict[str, int] = field(default_factory=dict)
    kept_higher: tuple[KeptHigher, ...] = ()
    auto_error: float | None = None
    evaluations: int = 0
    auto_note: str = ""


@dataclass(frozen=True, slots=True)
class OutputError:
    """How far one output is from TensorFlow's: `max_rel_error` is max|a−b| / max|b|, infinite (null in JSON) where
    they can't be compared; `why` says so then. `error` is by the metric asked for; None: that is the relative error."""

    name: str
    max_abs_error: float
    max_rel_error: float
    why: str = ""
    error: float | None = None

    @property
    def measured(self) -> float:
        """What the limit is for."""
        return self.max_rel_error if self.error is None else self.error


@dataclass(frozen=True, slots=True)
class Verification:
    """The stitched model against pure TensorFlow.

    Attributes:
        inputs: one entry per run: shape by input.
        engines_run: engine calls made.
        fallbacks: native segments that ran instead, by region and reason; any fails the verification.
        passed: None where verification was not asked for.
        tolerance, metric: the largest error that passes, and what an error is.
    """

    inputs: tuple[dict[str, list[int]], ...]
    outputs: tuple[OutputError, ...]
    engines_run: int
    fallbacks: dict[str, dict[str, int]]
    passed: bool | None
    tolerance: float | None = None
    metric: str = "relative"


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
            lines += [f"    {line}" for line in _auto_lines(region)]
            lines += [
                f"    error: {e.backend}: {e.types.why_not}"
                for e in region.engines
                if e.types is not None and e.types.confirmed is False
            ]
        lines += [f"  {line}" for line in reason_lines(self.left_in_tensorflow)]
        check = self.verification
        if check.passed is None:
            lines.append("not verified")
        else:
            worst = max((output.measured for output in check.outputs), default=0.0)
            lines.append(
                f"verified against TensorFlow: largest {check.metric} error {worst:.1e} (allowed {check.tolerance:.0e}), "
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
    choices = {choice.region: choice for choice in engines.choices}
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
                    e.types,
                )
                for e in engines.engines
                if e.region == region.name
            ),
            region.max_abs_error,
            region.max_rel_error,
            region.profiles,
            *_chosen(choices.get(region.name), nodes[region.scope]),
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


def _chosen(
    choice: Choice | None, nodes: Mapping[str, tuple[str, str]]
) -> tuple[dict[str, int], tuple[KeptHigher, ...], float | None, int, str]:
    """The fields of `RegionReport` that say what was chosen, with names of ops in the whole model."""
    if choice is None:
        return {}, (), None, 0, ""
    kept = tuple(
        KeptHigher(layer_of(nodes[k.ops[0]][0]), tuple(nodes[op][0] for op in k.ops), k.precision, k.error, k.why)
        for k in choice.kept_higher
    )
    counts = {precision: len(ops) for precision, ops in choice.ops.items()}
    return counts, kept, choice.error, choice.evaluations, choice.note


def _auto_lines(region: RegionReport) -> list[str]:
    """What was chosen for a region, and the first layers that are kept higher."""
    if not region.precisions:
        return []
    counts = ", ".join(f"{_count(number, 'op')} in {name}" for name, number in region.precisions.items())
    error = "" if region.auto_error is None else f", error {region.auto_error:.1e}"
    note = f"; {region.auto_note}" if region.auto_note else ""
    lines = [f"auto: {counts}{error} ({_count(region.evaluations, 'trial')}){note}"]
    lines += [kept_line(kept) for kept in region.kept_higher[:_KEPT_SHOWN]]
    rest = len(region.kept_higher) - _KEPT_SHOWN
    return lines + ([f"{_count(rest, 'more layer')} kept higher, listed in report.json"] if rest > 0 else [])


def kept_line(kept: KeptHigher) -> str:
    """Why a layer is not in a faster precision, in words."""
    error = "" if kept.error is None else f", where the error would be {kept.error:.1e}"
    return f"kept in {kept.precision}: {kept.layer} ({_count(len(kept.ops), 'op')}): {kept.why}{error}"


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
