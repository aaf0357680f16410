"""The build stage: engines for each region and back end, precision fallback, and what a failure leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from stages import storage
from stages.artifacts import Choice, EngineSet, FrozenGraph, Partition, Profile, Region, Source, Tensor
from stages.autoprecision import AutoOptions
from stages.build import EngineOptions, build
from stages.errors import ArtifactError, BackendError, BuildError, VerifyError
from stages.storage import sha256_file
from tests import onnx_models as tiny

pytest.importorskip("tensorrt_rtx")

BOTH = EngineOptions(("tensorrt_rtx", "onnxruntime"))
RANGES = (tiny.conv_profile(1, 2, 4),)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFTRT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


Make = Callable[..., Partition]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A partition on disk with one region for each (model, profiles)."""

    def run(*regions: tuple[onnx.ModelProto, tuple[Profile, ...]]) -> Partition:
        frozen = FrozenGraph(tmp_path / "frozen", Source("graph_def", None), (), (), (), ())
        frozen.folder.mkdir()
        (frozen.folder / "graph.pb").touch()  # a graph without nodes
        storage.save(frozen, frozen.folder)
        folder = tmp_path / "partition"
        made = tuple(
            region(f"region_{i}", proto, profiles, folder / "regions" / f"region_{i}" / "model.onnx")
            for i, (proto, profiles) in enumerate(regions)
        )
        partition = Partition(folder, frozen, "tensorrt_rtx", made, (), len(made))
        storage.save(partition, folder)
        return partition

    return run


def region(name: str, proto: onnx.ModelProto, profiles: tuple[Profile, ...], path: Path) -> Region:
    tiny.save(proto, path)
    inputs, outputs = (
        tuple(
            Tensor(
                f"{name}/{value.name}:0",
                "float32",
                tuple(axis.dim_value or None for axis in value.type.tensor_type.shape.dim),
            )
            for value in values
        )
        for values in (proto.graph.input, proto.graph.output)
    )
    return Region(name, (f"{name}/op",), inputs, outputs, path, sha256_file(path), profiles)


def test_every_region_gets_an_engine_of_every_back_end(make: Make, tmp_path: Path) -> None:
    partition = make((tiny.conv(), RANGES), (tiny.matmul(), ()))
    built = build(partition, tmp_path / "out", options=BOTH)
    assert [(engine.region, engine.file.relative_to(built.folder).as_posix()) for engine in built.engines] == [
        ("region_0", "regions/region_0/tensorrt_rtx.plan"),
        ("region_0", "regions/region_0/onnxruntime.onnx"),
        ("region_1", "regions/region_1/tensorrt_rtx.plan"),
        ("region_1", "regions/region_1/onnxruntime.onnx"),
    ]
    digests = {region.name: region.digest for region in partition.regions}
    for engine in built.engines:
        assert engine.sha256 == sha256_file(engine.file)
        assert engine.bytes == engine.file.stat().st_size
        assert engine.build_seconds > 0
        assert engine.note == ""
        assert engine.verified == "not run here"
        assert engine.fingerprint.digest == digests[engine.region]
        assert engine.fingerprint.precision == "fp32"
        assert engine.fingerprint.version
        stored = json.loads((engine.file.parent / f"{engine.fingerprint.backend}.json").read_text())
        assert stored["digest"] == engine.fingerprint.digest
        assert stored["backend"] == engine.fingerprint.backend


def test_the_artifact_on_disk_is_the_one_returned(make: Make, tmp_path: Path) -> None:
    built = build(make((tiny.conv(), RANGES)), tmp_path / "out", options=BOTH)
    assert storage.load(EngineSet, tmp_path / "out") == built
    found = {file.name for file in (tmp_path / "out" / "regions" / "region_0").iterdir()}
    assert found == {"tensorrt_rtx.plan", "tensorrt_rtx.json", "onnxruntime.onnx", "onnxruntime.json"}


def test_fp16_is_written_into_the_plan_of_each_back_end(make: Make, tmp_path: Path) -> None:
    partition = make((tiny.conv(layers=3), RANGES))
    built = build(partition, tmp_path / "out", options=EngineOptions(BOTH.backends, "fp16"))
    assert [engine.fingerprint.precision for engine in built.engines] == ["fp16", "fp16"]
    assert {engine.fingerprint.digest for engine in built.engines} == {partition.regions[0].digest}
    plan = onnx.load(built.engines[1].file)
    assert tiny.HALF in {tensor.data_type for tensor in plan.graph.initializer}
    assert list(plan.graph.input) == list(onnx.load(partition.regions[0].model).graph.input)


def test_a_cpu_has_no_tf32(make: Make, tmp_path: Path) -> None:
    built = build(make((tiny.conv(), RANGES)), tmp_path / "out", options=EngineOptions(BOTH.backends, "tf32"))
    assert [engine.fingerprint.precision for engine in built.engines] == ["tf32", "fp32"]


def test_a_precision_that_fails_falls_back_to_fp32_with_the_reason(make: Make, tmp_path: Path) -> None:
    # TensorRT assumes a version where a model names none; type inference, on which the conversion relies, refuses.
    proto = tiny.conv()
    del proto.opset_import[:]
    built = build(make((proto, RANGES)), tmp_path / "out", options=EngineOptions(("tensorrt_rtx",), "fp16"))
    (engine,) = built.engines
    assert engine.fingerprint.precision == "fp32"
    assert engine.note.startswith("fp16: ")
    assert engine.note.endswith("; built in fp32")


@pytest.mark.parametrize("tried", [True, False], ids=["fp16 fits", "fp16 was too far off"])
def test_a_choice_with_int8_that_fails_is_built_without_it_where_that_was_tried(
    make: Make, tmp_path: Path, tried: bool
) -> None:
    ops = ("conv_0", "relu_0")
    without = {"fp16": ops} if tried else {}
    choice = Choice("region_0", "int8", {"int8": ops}, 0.01, 0.01, 2, without_int8=without)
    # Without a table no range is known, so that nothing can be quantised.
    options = EngineOptions(BOTH.backends, "auto", auto=AutoOptions(choices=(choice,)))
    built = build(make((tiny.conv(), RANGES)), tmp_path / "out", options=options)
    for engine in built.engines:
        assert engine.fingerprint.precision == ("fp16" if tried else "fp32")
        assert engine.note.startswith("int8: ")
        assert engine.note.endswith("built in fp16" if tried else "built in fp32")
        assert engine.types is not None
        assert engine.types.asked == {"float16" if tried else "float32": ("conv_0",)}
    assert storage.load(EngineSet, tmp_path / "out").choices == (choice,)


def test_auto_with_a_limit_of_nothing_or_an_unknown_metric_is_refused(make: Make, tmp_path: Path) -> None:
    partition = make((tiny.conv(), RANGES))
    for bad, words in ((AutoOptions(limit=0), "leaves room for nothing"), (AutoOptions(metric="rmse"), "is unknown")):
        with pytest.raises(VerifyError, match=words):
            build(partition, tmp_path / "out", options=EngineOptions(BOTH.backends, "auto", auto=bad))
    assert not (tmp_path / "out").exists()


def test_a_region_that_does_not_build_is_recorded_and_the_others_are_built(make: Make, tmp_path: Path) -> None:
    partition = make((tiny.unbuildable(), ()), (tiny.conv(), RANGES))
    built = build(partition, tmp_path / "out", options=BOTH)
    (failed,) = built.failed
    assert failed.region == "region_0"
    assert failed.reason.startswith("tensorrt_rtx: fp32: ")
    assert "nms" in failed.reason
    assert {engine.region for engine in built.engines} == {"region_1"}
    assert not (tmp_path / "out" / "regions" / "region_0").exists()
    assert storage.load(EngineSet, tmp_path / "out").failed == built.failed


def test_a_fallback_that_fails_too_gives_both_reasons(make: Make, tmp_path: Path) -> None:
    options = EngineOptions(("tensorrt_rtx",), "fp16")
    (failed,) = build(make((tiny.unbuildable(), ())), tmp_path / "out", options=options).failed
    assert "fp16: " in failed.reason
    assert "fp32: " in failed.reason


def test_a_build_beyond_the_time_limit_costs_its_region_only(make: Make, tmp_path: Path) -> None:
    options = EngineOptions(("tensorrt_rtx",), time_limit_seconds=0.05)
    built = build(make((tiny.conv(layers=40), RANGES)), tmp_path / "out", options=options)
    assert not built.engines
    assert "did not end within 0.05 s" in built.failed[0].reason


def test_a_second_build_comes_from_the_cache(make: Make, tmp_path: Path) -> None:
    partition = make((tiny.conv(), RANGES))
    options = EngineOptions(("tensorrt_rtx",), "fp16")
    first = build(partition, tmp_path / "first", options=options).engines[0]
    second = build(partition, tmp_path / "second", options=options).engines[0]
    assert (second.sha256, second.build_seconds) == (first.sha256, first.build_seconds)


def test_the_cache_can_be_left_alone(make: Make, tmp_path: Path, cache_folder: Path) -> None:
    options = EngineOptions(("tensorrt_rtx",), use_cache=False)
    assert build(make((tiny.conv(), RANGES)), tmp_path / "out", options=options).engines
    assert not cache_folder.exists()


def test_an_open_axis_without_a_range_names_the_input_and_the_remedy(make: Make, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        build(make((tiny.conv(), ())), tmp_path / "out", options=BOTH)
    assert "region_0 input region_0/input_0:0: shape (?, 3, 16, 16) is open and has no range" in str(caught.value)
    assert caught.value.remedy == "--shape region_0/input_0:0=MIN,OPT,MAX"
    assert not (tmp_path / "out").exists()


def test_onnx_runtime_alone_needs_no_range(make: Make, tmp_path: Path) -> None:
    built = build(make((tiny.conv(), ())), tmp_path / "out", options=EngineOptions(("onnxruntime",)))
    assert [engine.fingerprint.backend for engine in built.engines] == ["onnxruntime"]


def test_wrong_options_are_refused_before_anything_is_written(make: Make, tmp_path: Path) -> None:
    partition = make((tiny.conv(), RANGES))
    with pytest.raises(BuildError, match="fp32, tf32, fp16"):
        build(partition, tmp_path / "out", options=EngineOptions(("tensorrt_rtx",), "int4"))
    with pytest.raises(BackendError, match="is no back end"):
        build(partition, tmp_path / "out", options=EngineOptions(("openvino",)))
    assert not list(tmp_path.glob("*out*"))


def test_an_output_folder_that_exists_is_kept(make: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="exists already"):
        build(make((tiny.conv(), RANGES)), tmp_path / "out", options=BOTH)


def test_kernels_for_fixed_sizes_are_built_unless_a_region_is_too_large(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = make((tiny.conv(), RANGES))

    def plan_bytes(name: str, *, fixed_sizes: bool) -> int:
        options = EngineOptions(("tensorrt_rtx",), fixed_sizes=fixed_sizes, use_cache=False)
        (engine,) = build(partition, tmp_path / name, options=options).engines
        return engine.bytes

    without = plan_bytes("without", fixed_sizes=False)
    assert plan_bytes("with", fixed_sizes=True) > without
    monkeypatch.setattr("stages.build._FIXED_SIZES_OPS", 0)
    assert plan_bytes("large", fixed_sizes=True) == without
