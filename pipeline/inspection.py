"""What a model would become, without building anything; and what lies in a folder or file that GraftRT wrote."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import Config, split_options
from pipeline.reasons import Group, groups
from pipeline.report import Report
from pipeline.run import Progress, Quiet, freeze_model
from stages import backends, storage
from stages.artifacts import LeftOp, Tensor
from stages.errors import ArtifactError
from stages.export import export
from stages.split import split


@dataclass(frozen=True, slots=True)
class RegionPlan:
    """A region that the parser accepts. `onnx_ops` counts its ONNX nodes by op type."""

    name: str
    ops: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    onnx_ops: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A dry run: what would be converted as far as tf2onnx and TensorRT's parser say. A build or the comparison with
    TensorFlow may still return ops to TensorFlow."""

    model: str
    backend: str
    ops_total: int
    ops_in_regions: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    regions: tuple[RegionPlan, ...]
    left_in_tensorflow: tuple[LeftOp, ...]
    seconds: float

    @property
    def reasons(self) -> list[Group]:
        return groups(self.left_in_tensorflow)


def inspect_model(model: object, config: Config | None = None, *, progress: Progress | None = None) -> Inspection:
    """Freeze, export and ask the parser, in a temporary folder; nothing is built or run.

    Args:
        model: as for `pipeline.convert`.
        config: of it count how to open the model (`signature`, `tags`, `inputs`, `outputs`, `constants`,
            `op_libraries`), `backend`, `keep_in_tf`, `min_region` and `time_limit_seconds`.

    Raises:
        ConversionError: one of its subclasses, by stage.
    """
    config, progress = config or Config(), progress or Quiet()
    start = time.perf_counter()
    backend = backends.choose(config.backend)[0]
    with tempfile.TemporaryDirectory(prefix="graftrt-inspect-") as folder:
        work = Path(folder)
        with progress.stage("freeze"):
            frozen = freeze_model(model, work / "freeze", config)
        with progress.stage("export"):
            exported = export(frozen, work / "export", keep_in_tf=config.keep_in_tf, min_region=config.min_region)
        with progress.stage("parse"):
            options = replace(split_options(config, backend), dry_run=True)
            partition = split(exported, work / "split", options=options)
        regions = tuple(
            RegionPlan(region.name, region.ops, region.inputs, region.outputs, onnx_ops(region.model))
            for region in partition.regions
        )
    return Inspection(
        model=str(model) if isinstance(model, (str, Path)) else type(model).__name__,
        backend=backend,
        ops_total=partition.ops_total,
        ops_in_regions=sum(len(region.ops) for region in regions),
        inputs=tuple(replace(t, name=name) for name, t in zip(frozen.input_names, frozen.inputs, strict=True)),
        outputs=tuple(replace(t, name=name) for name, t in zip(frozen.output_names, frozen.outputs, strict=True)),
        regions=regions,
        left_in_tensorflow=partition.left,
        seconds=time.perf_counter() - start,
    )


def onnx_ops(model: Path) -> dict[str, int]:
    """How many nodes of each op type an ONNX model has, most frequent first.

    Raises:
        ArtifactError: it is no ONNX model.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        loaded = onnx.load(model, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise ArtifactError(f"{model}: is no ONNX model: {error}", "give a region's model.onnx") from error
    return dict(Counter(node.op_type for node in loaded.graph.node).most_common())


def inspect_path(path: Path) -> dict[str, object] | None:
    """What a folder or file is that GraftRT wrote, as JSON values; None if it is none (a model, perhaps).

    Knows the folders of `convert` and of each stage, a region's folder or its `model.onnx`, and a plan.

    Raises:
        ArtifactError: it is damaged.
    """
    if (path / "report.json").is_file():
        report = Report.read(path / "report.json")
        return {"kind": "conversion", "summary": report.summary().splitlines()}
    if (path / "artifact.json").is_file():
        return _artifact(path)
    if path.suffix == ".onnx" and path.is_file():
        return {"kind": "ONNX model", **_onnx(path)}
    if path.is_dir() and (path / "model.onnx").is_file():
        plans = [_plan(file) for file in sorted(path.glob("*.plan"))]
        return {"kind": "region", **_onnx(path / "model.onnx"), "plans": plans}
    if path.suffix == ".plan" and path.is_file():
        return {"kind": "plan", **_plan(path)}
    return None


def _artifact(folder: Path) -> dict[str, object]:
    try:
        body = json.loads((folder / "artifact.json").read_text())
        kind = str(body["artifact"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder}: is damaged: {error}", "run the stage that wrote it again") from error
    listed = {name: len(value) if isinstance(value, list) else value for name, value in body.items()}
    return {"kind": kind, **{name: value for name, value in listed.items() if name != "artifact"}}


def _onnx(path: Path) -> dict[str, object]:
    import onnx

    ops = onnx_ops(path)
    graph = onnx.load(path, load_external_data=False).graph
    files = [path, *(file for file in path.parent.glob(f"{path.name}*") if file != path)]
    return {
        "inputs": [_binding(value) for value in graph.input],
        "outputs": [_binding(value) for value in graph.output],
        "nodes": sum(ops.values()),
        "ops": ops,
        "bytes": sum(file.stat().st_size for file in files),
    }


def _binding(value: object) -> str:
    import onnx

    kind = value.type.tensor_type  # type: ignore[attr-defined]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    axes = [str(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or "?" for axis in kind.shape.dim]
    return f"{value.name}: {dtype} ({', '.join(axes)})"  # type: ignore[attr-defined]


def _plan(path: Path) -> dict[str, object]:
    described = {"file": path.name, "bytes": path.stat().st_size, "sha256": storage.sha256_file(path)}
    beside = path.with_suffix(".json")
    if beside.is_file():
        try:
            described |= {"built": json.loads(beside.read_text())}
        except ValueError as error:
            raise ArtifactError(f"{beside}: is damaged: {error}", "build the region again") from error
    return described
