"""The stages in Python, one after the other: the artifacts say what the whole conversion's report says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from fixtures import cuts, vision
from pipeline import Config, convert
from pipeline.verify import verify_folder
from stages import backends, build, engine_op, export, freeze, split, stitch, storage
from stages.artifacts import EngineSet, FrozenGraph, OnnxExport, Partition, StitchedGraph


def run(folder: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    engine_op.load()
    function = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
    return {name: value.numpy() for name, value in function(**dict(map(typed, inputs.items()))).items()}


def typed(item: tuple[str, np.ndarray]) -> tuple[str, tf.Tensor]:
    return item[0], tf.constant(item[1])


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> StitchedGraph:
    """Each stage on the last one's artifact, read again from its folder, as in another process."""
    work = tmp_path_factory.mktemp("stages")
    model = cuts.diamond().save(work / "model")
    names = backends.choose()
    freeze.freeze(model, work / "freeze")
    export.export(storage.load(FrozenGraph, work / "freeze"), work / "export", min_region=2)
    options = split.SplitOptions(names[0], min_region=2)
    split.split(storage.load(OnnxExport, work / "export"), work / "split", options=options)
    build.build(storage.load(Partition, work / "split"), work / "build", options=build.EngineOptions(names))
    return stitch.stitch(storage.load(EngineSet, work / "build"), work / "stitch")


def test_the_stages_give_what_convert_gives(stages: StitchedGraph, tmp_path: Path) -> None:
    example = cuts.diamond()
    report = convert(example.save(tmp_path / "model"), tmp_path / "out", Config(min_region=2))
    partition = stages.engines.partition
    assert report.ops_total == partition.ops_total
    assert {r.name: r.ops for r in report.regions} == {r.name: r.ops for r in partition.regions}
    assert report.left_in_tensorflow == partition.left
    assert len(report.regions) == 2
    engines = {(r.name, e.backend): e.fingerprint for r in report.regions for e in r.engines}
    assert engines == {(e.region, e.fingerprint.backend): e.fingerprint for e in stages.engines.engines}
    one_by_one, whole = (run(folder, example.inputs) for folder in (stages.folder, tmp_path / "out"))
    assert one_by_one.keys() == whole.keys()
    assert all(np.array_equal(one_by_one[name], whole[name]) for name in whole)


def test_what_a_stage_returns_is_what_lies_in_its_folder(stages: StitchedGraph) -> None:
    assert storage.load(StitchedGraph, stages.folder) == stages


def test_a_dry_run_ends_after_split_and_knows_regions_and_reasons(stages: StitchedGraph) -> None:
    partition = storage.load(Partition, stages.folder.parent / "split")
    assert [op.op for op in partition.left] == ["BesselI1e"]
    assert sum(len(region.ops) for region in partition.regions) + len(partition.left) == partition.ops_total
    assert all(region.profiles and region.max_rel_error is not None for region in partition.regions)
    assert all(region.model.exists() for region in partition.regions)


def test_a_frozen_pb_is_served_under_the_usual_signature(tmp_path: Path) -> None:
    model = vision.small_cnn()
    frozen = freeze.freeze(model, tmp_path / "frozen")
    (tmp_path / "model.pb").write_bytes(frozen.graph_def().SerializeToString())
    convert(tmp_path / "model.pb", tmp_path / "out")
    image = vision.small_cnn_inputs(3)["image"]
    loaded = tf.saved_model.load(str(tmp_path / "out/saved_model"))
    assert list(loaded.signatures) == ["serving_default"]
    ((name, _),) = loaded.signatures["serving_default"].structured_input_signature[1].items()
    (actual,) = run(tmp_path / "out", {name: image}).values()
    np.testing.assert_allclose(actual, model(image).numpy(), rtol=1e-4, atol=1e-6)


def test_the_only_tags_of_a_saved_model_need_not_be_named_and_are_kept(tmp_path: Path) -> None:
    example = cuts.diamond()
    path = example.save(tmp_path / "model") / "saved_model.pb"
    message = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    message.meta_graphs[0].meta_info_def.tags.append("gpu")
    path.write_bytes(message.SerializeToString())
    convert(path.parent, tmp_path / "out", Config(min_region=2))
    assert verify_folder(tmp_path / "out").passed
    stitched = (tmp_path / "out/saved_model/saved_model.pb").read_bytes()
    assert saved_model_pb2.SavedModel.FromString(stitched).meta_graphs[0].meta_info_def.tags == ["serve", "gpu"]
    assert run(tmp_path / "out", example.inputs).keys() == example.run().keys()
