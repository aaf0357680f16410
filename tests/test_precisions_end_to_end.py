"""Whole conversions in every precision: what engines compute in, what was calibrated, and what falls back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fixtures import quantised, vision
from pipeline import Config, convert
from pipeline.cli import main
from stages import export, freeze, split
from stages.artifacts import Partition
from stages.backends.base import PRECISIONS
from stages.build import EngineOptions, build
from stages.calibrating import CalibrationOptions
from stages.compare import TOLERANCES
from stages.errors import BuildError, CalibrationError, SplitError
from stages.precision import CalibrationTable, Range
from stages.precision import convert as write_precision
from tests.conftest import Converted

Convert = Callable[..., Converted]
ORT = "onnxruntime"


def images(count: int = 3) -> list[dict[str, np.ndarray]]:
    return [vision.small_cnn_inputs(2, seed=seed) for seed in range(count)]


def engines(done: Converted) -> dict[str, tuple[str, str]]:
    """Precision and note of each engine of the only region, by back end."""
    (region,) = done.report.regions
    return {engine.backend: (engine.precision, engine.note) for engine in region.engines}


def plan(done: Converted) -> onnx.ModelProto:
    return onnx.load(done.out / "regions" / "region_0" / "onnxruntime.onnx")


def test_every_precision_has_a_tolerance_and_a_choice_on_the_command_line() -> None:
    assert tuple(TOLERANCES) == PRECISIONS
    for precision in PRECISIONS:
        assert Config(precision=precision).tolerance == TOLERANCES[precision]
        with pytest.raises(SystemExit):
            main(["convert", "model", "out", "--precision", precision, "--nonsense"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_are_built_and_executed(precision: str, converted: Convert) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = converted(
        vision.small_cnn(),
        precision=precision,
        samples=iter(images()),
        capabilities=("8.9",),
        backend=f"tensorrt_rtx,{ORT}",
    )
    assert engines(done) == {"tensorrt_rtx": (precision, ""), ORT: (precision, "")}
    (region,) = done.report.regions
    assert {engine.backend: engine.verified for engine in region.engines}[ORT] == "executed"
    assert 0 < max(output.max_rel_error for output in done.report.verification.outputs) < TOLERANCES[precision]
    assert CalibrationTable.read(done.out / "calibration.json").samples == 3


@pytest.mark.slow
def test_fp8_falls_back_where_the_gpu_aimed_at_has_none(converted: Convert) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = converted(
        vision.small_cnn(),
        precision="fp8",
        samples=images(),
        capabilities=("8.6",),
        backend="tensorrt_rtx",
        verify=False,
    )
    ((precision, note),) = engines(done).values()
    assert precision == "fp16"
    assert note.startswith("fp8: ")
    assert "fp8_e4m3" in note
    assert note.endswith("; built in fp16")


@pytest.mark.slow
def test_bf16_is_built_for_a_gpu_and_a_cpu_says_that_it_has_none(converted: Convert) -> None:
    pytest.importorskip("tensorrt_rtx")
    done = converted(vision.small_cnn(), precision="bf16", backend=f"tensorrt_rtx,{ORT}")
    assert engines(done) == {
        "tensorrt_rtx": ("bf16", ""),
        ORT: ("fp32", "bf16: ONNX Runtime has no bfloat16 kernels for a CPU; built in fp32"),
    }


def test_a_table_is_reused_for_the_same_model(converted: Convert, tmp_path: Path) -> None:
    model = tmp_path / "model.keras"
    vision.small_cnn().save(model)
    first = converted(model, precision="int8", samples=images(), backend=ORT, calibration="percentile")
    table = first.out / "calibration.json"
    assert json.loads(table.read_text())["method"] == "percentile"
    again = tmp_path / "again"
    convert(model, again, Config(precision="int8", calibration_table=table, backend=ORT))
    assert (again / "calibration.json").read_text() == table.read_text()
    names = "regions/region_0/onnxruntime.onnx"
    assert (again / names).read_bytes() == (first.out / names).read_bytes()
    with pytest.raises(CalibrationError, match="holds no ranges of region_0: it is of another model"):
        convert(vision.small_cnn(seed=1), tmp_path / "other", Config("int8", ORT, calibration_table=table))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
@pytest.mark.parametrize("samples", [None, [], iter(())])
def test_without_samples_there_are_no_ranges(precision: str, samples: object, tmp_path: Path) -> None:
    with pytest.raises(
        CalibrationError, match=f"{precision} needs samples(.|\n)*try: --samples .* --calibration-table"
    ):
        convert(vision.small_cnn(), tmp_path / "out", Config(precision, ORT, samples=samples))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


BAD: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "name": ({"picture": np.zeros((1, 16, 16, 3), np.float32)}, "picture: the model has no such input"),
    "shape": ({"image": np.zeros((1, 16, 3), np.float32)}, r"shape \(1, 16, 3\)"),
    "dtype": ({"image": np.zeros((1, 16, 16, 3), np.uint8)}, "dtype uint8"),
    "NaN": ({"image": np.full((1, 16, 16, 3), np.nan, np.float32)}, "contains NaN"),
}


@pytest.fixture(scope="module")
def partition(tmp_path_factory: pytest.TempPathFactory) -> Partition:
    folder = tmp_path_factory.mktemp("partition")
    exported = export.export(freeze.freeze(vision.small_cnn(), folder / "frozen"), folder / "exported")
    return split.split(exported, folder / "partition", options=split.SplitOptions(backend=ORT))


@pytest.mark.parametrize("what", BAD)
def test_samples_that_do_not_fit_the_model_are_named(what: str, partition: Partition, tmp_path: Path) -> None:
    sample, words = BAD[what]
    options = EngineOptions((ORT,), "int8", calibration=CalibrationOptions([*images(1), sample]))
    with pytest.raises(SplitError, match=words):
        build(partition, tmp_path / "out", options=options)
    assert not list(tmp_path.iterdir())


def test_samples_of_zeros_leave_nothing_to_quantise(partition: Partition, tmp_path: Path) -> None:
    # The bias that batch normalisation leaves behind makes the second convolution's input constant, but not zero.
    zero = {"image": np.zeros((1, 16, 16, 3), np.float32)}
    built = build(
        partition, tmp_path / "out", options=EngineOptions((ORT,), "int8", calibration=CalibrationOptions([zero]))
    )
    (engine,) = built.engines
    quantised_tensors = [n for n in onnx.load(engine.file).graph.node if n.op_type == "QuantizeLinear"]
    assert engine.fingerprint.precision == "int8"
    assert 0 < len(quantised_tensors) < 3, "the image itself is not among them"


def test_a_table_with_a_tensor_that_the_region_lacks_is_refused(partition: Partition, tmp_path: Path) -> None:
    build(partition, tmp_path / "out", options=EngineOptions((ORT,), "int8", calibration=CalibrationOptions(images(1))))
    table = tmp_path / "calibration.json"
    table.write_text((tmp_path / "out" / "calibration.json").read_text().replace('"input_0"', '"input_9"'))
    options = EngineOptions((ORT,), "int8", calibration=CalibrationOptions(table=table))
    with pytest.raises(CalibrationError, match="region_0 has no tensor input_9"):
        build(partition, tmp_path / "other", options=options)


def test_a_region_in_which_nothing_is_quantised_is_built_in_fp16(partition: Partition, tmp_path: Path) -> None:
    table = tmp_path / "calibration.json"
    CalibrationTable("minmax", 1, {partition.regions[0].digest: {}}).write(table)
    options = EngineOptions((ORT,), "int8", calibration=CalibrationOptions(table=table))
    (engine,) = build(partition, tmp_path / "out", options=options).engines
    assert engine.fingerprint.precision == "fp16"
    assert engine.note.startswith("int8: nothing in it can be quantised")
    assert engine.note.endswith("; built in fp16")


@pytest.mark.slow
def test_the_engine_cache_knows_the_ranges(
    partition: Partition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("GRAFTRT_CACHE_DIR", str(tmp_path / "cache"))
    first = tmp_path / "calibration.json"
    build(partition, tmp_path / "ort", options=EngineOptions((ORT,), "int8", calibration=CalibrationOptions(images(1))))
    first.write_text((tmp_path / "ort" / "calibration.json").read_text())
    table = CalibrationTable.read(first)
    (digest,) = table.regions
    wider = {name: replace(seen, amax=seen.amax * 2) for name, seen in table.regions[digest].items()}
    second = tmp_path / "edited.json"
    replace(table, regions={digest: wider}).write(second)

    def sha256(path: Path, name: str) -> str:
        options = EngineOptions(("tensorrt_rtx",), "int8", calibration=CalibrationOptions(table=path))
        (engine,) = build(partition, tmp_path / name, options=options).engines
        assert engine.fingerprint.precision == "int8"
        return engine.sha256

    assert sha256(first, "a") == sha256(first, "b") != sha256(second, "c")


def test_the_stage_by_itself_calibrates_on_samples(partition: Partition, tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", **images(1)[0])
    arguments = ["build", str(partition.folder), str(tmp_path / "out"), "--backend", ORT, "--precision", "int8"]
    assert main([*arguments, "-q"]) == 1, "without samples"
    assert main([*arguments, "-q", "--samples", str(tmp_path / "samples.npz"), "--calibration", "mse"]) == 0
    assert CalibrationTable.read(tmp_path / "out" / "calibration.json").method == "mse"


def test_fake_quantisation_becomes_pairs_with_its_own_ranges(converted: Convert) -> None:
    model = quantised.fake_quantised()
    done = converted(model, precision="int8", backend=ORT, keep_stages=True)
    assert engines(done) == {ORT: ("int8", "")}
    made = plan(done)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    scales = [constants[n.input[1]] for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert [float(scale * 127) for scale in scales] == pytest.approx([3, 6, 4], rel=1e-6)
    assert not {"Floor", "Round"} & {n.op_type for n in made.graph.node}
    assert len([n for n in made.graph.node if n.op_type == "Transpose"]) == 2, "only at the boundary"
    exact = onnx.load(done.out / "stages" / "split" / "regions" / "region_0" / "model.onnx")
    (first, *_) = [op for op in done.in_engines if op.endswith("FakeQuantWithMinMaxVars")]
    with pytest.raises(BuildError, match="nothing in it can be quantised"):
        write_precision(exact, "int8", fixed={first: Range(3, -3, 3)}, keep=[first])
    result = done.run(model.inputs)["result"]
    steps = np.rint(result / (4 / 127))
    assert np.allclose(result, steps * (4 / 127), atol=1e-5), "the output lies on the model's own grid"


def test_fake_quantisation_stays_exact_in_fp32(converted: Convert) -> None:
    done = converted(quantised.fake_quantised(), backend=ORT)
    assert "Floor" in {n.op_type for n in plan(done).graph.node}
    assert not (done.out / "calibration.json").exists()


def test_what_overflows_float16_on_samples_stays_in_float32(converted: Convert) -> None:
    model = quantised.loud()
    done = converted(model, precision="fp16", backend=ORT, samples=[model.inputs])
    types = {n.name: n.op_type for n in plan(done).graph.node}
    assert engines(done) == {ORT: ("fp16", "")}
    assert "Cast" in types.values(), "the last product is in half precision"
    assert np.abs(model.run()["result"] - done.run(model.inputs)["result"]).max() < 2e-3


def test_regions_in_a_loop_are_calibrated_on_what_the_loop_gives_them(converted: Convert) -> None:
    model = vision.conv_loop()
    done = converted(
        model, precision="int8", backend=ORT, samples=[model.inputs], keep_in_tf=("StatelessWhile", "While")
    )
    inside = [region for region in done.report.regions if any("while" in op for op in region.ops)]
    assert inside
    assert {engine.precision for region in inside for engine in region.engines} == {"int8"}


def test_samples_from_an_iterator_are_not_kept_in_memory(tmp_path: Path) -> None:
    seen: list[int] = []

    def stream() -> object:
        for number, sample in enumerate(images(4)):
            seen.append(number)
            yield sample

    config = Config("int8", ORT, samples=stream(), keep_stages=True)  # type: ignore[arg-type]
    convert(vision.small_cnn(), tmp_path / "out", config)
    assert seen == [0, 1, 2, 3], "asked once"
    assert len(list((tmp_path / "out" / "stages" / "samples").glob("*.npz"))) == 4
    assert replace(config).samples is config.samples
