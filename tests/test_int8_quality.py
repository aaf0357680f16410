"""What keeps int8's answers: corrected biases, folded normalisations, sensitive activations spared. Real models too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.precision import LARGEST_ERROR, answers, convert_in, quality, subjects
from fixtures import photographs
from pipeline import Config, ConversionError
from stages import onnx_files
from stages.errors import BuildError
from stages.execute import Session
from stages.precision import CalibrationTable, Range, convert
from stages.precision.bias import ChannelMeans
from stages.precision.calibration import Calibrator
from stages.precision.folding import fold_normalisation
from stages.precision.sensitivity import Kept
from tests import onnx_models as tiny
from tests.conftest import relative_error
from tests.pretrained_models import fetch_or_skip, original
from tests.test_precision import node

BATCHES = [np.random.default_rng(seed).random((2, 8, 6, 6), np.float32) for seed in range(4)]


def uneven() -> onnx.ModelProto:
    """Grouped convolutions on inputs that are never negative; each kernel has one large weight, so that the others are
    rounded coarsely, and always in the same direction. Then a normalisation left as Mul and Add."""
    kernel = np.full((8, 4, 3, 3), 0.34, np.float32)
    kernel[:, 0, 0, 0] = 100
    constants = {
        "kernel": kernel,
        "factor": np.linspace(0.1, 0.2, 8, dtype=np.float32).reshape(1, 8, 1, 1),
        "shift": np.linspace(-3, -2, 8, dtype=np.float32).reshape(8, 1, 1),
    }
    nodes = [
        node("Conv", ["input_0", "kernel"], "conv", pads=[1, 1, 1, 1], group=2),
        node("Mul", ["conv", "factor"], "scaled"),
        node("Add", ["shift", "scaled"], "shifted"),
        node("Relu", ["shifted"], "output_0"),
    ]
    shape = ["batch", 8, 6, 6]
    return tiny.model(nodes, [tiny.value("input_0", shape)], [tiny.value("output_0", shape)], constants)


def table_of(path: Path, tolerated: float | None = None) -> CalibrationTable:
    calibrator = Calibrator(path, "minmax", scratch=path.parent)
    for batch in BATCHES:
        calibrator.observe({"input_0": batch})
    return calibrator.table(tolerated=tolerated)


@pytest.mark.parametrize("precision", ["int8", "bf16", "fp16"])
def test_biases_make_up_for_rounded_weights(precision: str, tmp_path: Path) -> None:
    path = tiny.save(uneven(), tmp_path / "model.onnx")
    (ranges,) = table_of(path).regions.values()
    assert np.allclose(ranges["input_0"].means, np.mean(BATCHES, (0, 1, 3, 4)))
    plain = {name: replace(seen, means=()) for name, seen in ranges.items()}
    biases = []
    for given in (plain, ranges):
        model = convert(uneven(), precision, ranges=given, rest="fp32")
        (conv,) = (n for n in model.graph.node if n.op_type == "Conv")
        (bias,) = (t for t in model.graph.initializer if t.name == conv.input[2])
        biases.append(onnx.numpy_helper.to_array(bias).astype(np.float32))
    kernel = onnx.numpy_helper.to_array(next(t for t in uneven().graph.initializer if t.name == "kernel"))
    factor = np.linspace(0.1, 0.2, 8)
    if precision == "int8":
        step = 100 / 127
        lost = np.rint(kernel / step).clip(-127, 127) * step - kernel
        read = np.repeat(np.reshape(ranges["input_0"].means, (2, 4)), 4, 0)
        shift = (lost.sum((2, 3)) * read).sum(1) * factor
        assert np.allclose(biases[0] - biases[1], shift, rtol=0.02)
    else:
        assert np.abs(biases[0] - biases[1]).max() > 0


def test_int8_with_corrected_biases_is_nearer(tmp_path: Path) -> None:
    path = tiny.save(uneven(), tmp_path / "model.onnx")
    (ranges,) = table_of(path).regions.values()
    plain = {name: replace(seen, means=()) for name, seen in ranges.items()}
    (expected,) = tiny.run(uneven(), BATCHES[0])
    errors = []
    for given in (plain, ranges):
        model = convert(uneven(), "int8", ranges=given, rest="fp32")
        errors.append(relative_error(expected, tiny.run(model, BATCHES[0])[0]))
    assert errors[1] < errors[0] / 2


def test_a_normalisation_becomes_part_of_its_convolution(tmp_path: Path) -> None:
    (expected,) = tiny.run(uneven(), BATCHES[0])
    model = uneven()
    fold_normalisation(model, {})
    assert [n.op_type for n in model.graph.node] == ["Conv", "Relu"]
    assert relative_error(expected, tiny.run(model, BATCHES[0])[0]) < 1e-6


def test_large_kernels_are_folded_where_they_lie(tmp_path: Path) -> None:
    tiny.save(uneven(), tmp_path / "model.onnx")
    model, weights = onnx_files.load_model(tmp_path / "model.onnx")
    for tensor in model.graph.initializer:
        if tensor.name == "kernel":
            weights["kernel"] = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx_files.stand_in("kernel", tensor.data_type, tuple(tensor.dims), "kernel"))
    fold_normalisation(model, weights)
    onnx_files.save_model(model, tmp_path / "folded.onnx", weights)
    (expected,) = tiny.run(uneven(), BATCHES[0])
    actual = Session(tmp_path / "folded.onnx").run({"input_0": BATCHES[0]})["output_0"]
    assert relative_error(expected, actual) < 1e-6


@pytest.mark.parametrize("spoil", ["a result that is read twice", "a constant of another axis", "a tensor"])
def test_what_is_no_normalisation_stays(spoil: str) -> None:
    model = uneven()
    if spoil == "a result that is read twice":
        model.graph.output.append(tiny.value("conv", ["batch", 8, 6, 6]))
    elif spoil == "a constant of another axis":
        for tensor in model.graph.initializer:
            if tensor.name == "factor":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones((1, 1, 6, 1), np.float32), "factor"))
    else:
        model.graph.node[1].input[1] = "input_0"
    before = [n.op_type for n in model.graph.node]
    fold_normalisation(model, {})
    assert [n.op_type for n in model.graph.node] == before


# -- what is too sensitive


def two_convolutions() -> onnx.ModelProto:
    """The first reads one channel a thousand times larger than the others, which are all that its kernel looks at: in 8
    bits nothing is left of them. The second is harmless."""
    rng = np.random.default_rng(3)
    look = rng.normal(size=(8, 8, 1, 1)).astype(np.float32)
    look[:, 0] = 0
    constants = {
        "look": look,
        "large": np.array([1000] + [1] * 7, np.float32).reshape(1, 8, 1, 1),
        "kernel": rng.normal(size=(8, 8, 3, 3)).astype(np.float32),
    }
    nodes = [
        node("Mul", ["input_0", "large"], "spread"),
        node("Conv", ["spread", "look"], "seen"),
        node("Conv", ["seen", "kernel"], "output_0", pads=[1, 1, 1, 1]),
    ]
    shape = ["batch", 8, 6, 6]
    return tiny.model(nodes, [tiny.value("input_0", shape)], [tiny.value("output_0", shape)], constants)


def test_only_what_is_too_sensitive_is_spared(tmp_path: Path) -> None:
    path = tiny.save(two_convolutions(), tmp_path / "model.onnx")
    table = table_of(path, tolerated=0.03)
    (ranges,) = table.regions.values()
    assert {name for name, seen in ranges.items() if seen.sensitive} == {"spread"}
    assert not any(seen.sensitive for seen in next(iter(table_of(path, tolerated=100).regions.values())).values())
    assert not any(seen.sensitive for seen in next(iter(table_of(path).regions.values())).values())
    model = convert(two_convolutions(), "int8", ranges=ranges, rest="fp32")
    read = {n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert read == {"seen"}
    (expected,) = tiny.run(two_convolutions(), BATCHES[0])
    assert relative_error(expected, tiny.run(model, BATCHES[0])[0]) < 0.03
    fp8 = convert(two_convolutions(), "fp8", ranges=ranges, rest="fp32")
    assert {n.input[0] for n in fp8.graph.node if n.op_type == "QuantizeLinear"} == {"spread", "seen"}

    table.write(tmp_path / "calibration.json")
    assert CalibrationTable.read(tmp_path / "calibration.json") == table


def test_a_region_that_is_all_too_sensitive_says_so(tmp_path: Path) -> None:
    path = tiny.save(two_convolutions(), tmp_path / "model.onnx")
    (ranges,) = table_of(path, tolerated=1e-9).regions.values()
    with pytest.raises(BuildError, match=r"too sensitive for 8 bits"):
        convert(two_convolutions(), "int8", ranges=ranges)


def test_the_runs_that_are_kept_are_few_and_spread_evenly() -> None:
    kept = Kept()
    for number in range(100):
        kept.add({"x": np.array([number])})
    assert [int(batch["x"][0]) for batch in kept.batches] == list(range(0, 100, 8))
    large = Kept()
    for _ in range(3):
        large.add({"x": np.zeros(10 << 20, np.float32)})
    assert len(large.batches) == 1


def test_means_of_nothing_are_none() -> None:
    means = ChannelMeans()
    means.observe(np.zeros((0, 3, 2), np.float32))
    assert means.values() == ()
    means.observe(np.array([[[1.0, 3.0]], [[5.0, 7.0]]]))
    assert means.values() == (4.0,)
    means.observe(np.array([[[np.inf]]]))
    assert means.values() == ()


def test_an_error_that_is_none_is_refused() -> None:
    with pytest.raises(ConversionError, match="int8_error 0 is not positive"):
        Config(int8_error=0)
    assert not Range(1, 0, 1).sensitive


# -- real models


def test_no_photograph_or_person_is_both_calibrated_and_tested_on() -> None:
    assert not set(photographs.CALIBRATION) & set(photographs.TEST)
    assert not set(photographs.CALIBRATION_PEOPLE) & set(photographs.TEST_PEOPLE)


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1], ids=["mobilenet-pb", "fer"])
def test_int8_gives_tensorflows_answers(place: int, tmp_path: Path) -> None:
    subject = list(subjects())[place]
    run = original(fetch_or_skip(subject.name))
    expected = np.concatenate([run({"input": image})[0] for image in subject.test])
    report = convert_in("int8", subject, tmp_path / "out", backend="onnxruntime")
    assert [engine.precision for region in report.regions for engine in region.engines] == ["int8"]
    found = quality(expected, answers(tmp_path / "out/saved_model", subject.test))
    assert len(subject.test) >= 200
    assert found["agreement"] >= 0.98
    assert 0 < found["max_rel_error"] < 0.1 < LARGEST_ERROR
