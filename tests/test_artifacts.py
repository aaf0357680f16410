"""Artifacts survive the disk, move as a whole, and appear complete or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stages import storage
from stages.artifacts import FrozenGraph, LeftOp, OnnxExport, Reason, Region, ShapeRange, Source, Tensor, Weight
from stages.errors import ArtifactError


def _write_chain(root: Path) -> OnnxExport:
    tensor = Tensor("x:0", "float32", (None, 3))
    with storage.write_folder(root / "freeze") as folder:
        (folder / "graph.pb").write_bytes(b"")
        frozen = FrozenGraph(
            folder,
            Source("graph_def", None),
            (tensor,),
            (Tensor("y:0", "int64", None),),
            ("x",),
            ("y",),
            (Weight("w", "weights/0.npy", "float32", (2, 3)),),
        )
        storage.save(frozen, folder)
    frozen = storage.load(FrozenGraph, root / "freeze")
    with storage.write_folder(root / "export") as folder:
        profile = (ShapeRange("input_0", (1, 3), (8, 3), (32, 3)),)
        region = Region("region_0", ("a", "b"), (tensor,), (), folder / "regions/region_0/model.onnx", "ff", (profile,))
        storage.save(OnnxExport(folder, frozen, (region,), (LeftOp("n", "Op", "layer", Reason.USER, "d"),)), folder)
    return storage.load(OnnxExport, root / "export")


def test_an_artifact_reads_back_equal_with_the_artifact_it_builds_on(tmp_path: Path) -> None:
    export = _write_chain(tmp_path)
    assert export.frozen.inputs[0].shape == (None, 3)
    assert export.frozen.outputs[0].shape is None
    assert export.candidates[0].model == tmp_path / "export/regions/region_0/model.onnx"
    assert export.candidates[0].profiles[0][0].optimum == (8, 3)
    assert export.left[0].reason is Reason.USER
    storage.save(export, export.folder)
    assert storage.load(OnnxExport, export.folder) == export


def test_a_whole_conversion_can_be_moved(tmp_path: Path) -> None:
    _write_chain(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    export = storage.load(OnnxExport, tmp_path / "there/export")
    assert export.frozen.folder == tmp_path / "there/freeze"
    assert export.candidates[0].model == tmp_path / "there/export/regions/region_0/model.onnx"


def test_a_failed_block_leaves_no_folder(tmp_path: Path) -> None:
    def fail() -> None:
        with storage.write_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="exists already"), storage.write_folder(tmp_path / "out"):
        pass


def test_a_missing_foreign_or_damaged_artifact_is_named(tmp_path: Path) -> None:
    export = _write_chain(tmp_path)
    with pytest.raises(ArtifactError, match=r"holds no artifact\.json"):
        storage.load(OnnxExport, tmp_path)
    with pytest.raises(ArtifactError, match="holds a OnnxExport, not a FrozenGraph"):
        storage.load(FrozenGraph, export.folder)
    path = export.folder / "artifact.json"
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(ArtifactError, match="is damaged"):
        storage.load(OnnxExport, export.folder)
    path.write_text(whole.replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(ArtifactError, match="format version 99"):
        storage.load(OnnxExport, export.folder)
    path.write_text(whole.replace('"candidates"', '"candidate"'))
    with pytest.raises(ArtifactError, match="is damaged"):
        storage.load(OnnxExport, export.folder)
