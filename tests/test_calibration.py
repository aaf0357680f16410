"""Ranges from samples: what each method chooses, memory that does not grow, tables, and samples that are wrong."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from stages import onnx_files
from stages.errors import CalibrationError
from stages.precision import CalibrationTable, Range
from stages.precision.calibration import Calibrator
from stages.precision.histogram import BINS, LEVELS, METHODS, PERCENTILE, Histogram
from tests import onnx_models as tiny
from tests.test_precision import node


def observed(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.observe(batch)
    return histogram


def normal(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_batches_give_what_all_of_them_at_once_give() -> None:
    parts = [normal(3000, seed) * 2.0 ** (seed - 3) for seed in range(9)]
    whole, streamed = observed(np.concatenate(parts)), observed(*parts)
    assert streamed.counts.sum() == whole.counts.sum()
    assert (streamed.low, streamed.high) == (whole.low, whole.high)
    for method in METHODS:
        near = 0.2 if method == "entropy" else 0.02  # its loss is nearly the same over a wide stretch
        assert streamed.range(method).amax == pytest.approx(whole.range(method).amax, rel=near), method


def test_a_histogram_stays_as_small_however_far_and_often_values_grow() -> None:
    histogram = observed(normal(100) * 1e-30)
    for power in range(-20, 30):
        histogram.observe(normal(1000, power + 20) * 10.0**power)
    assert histogram.counts.shape == (BINS,)
    assert histogram.counts.sum() == 100 + 50 * 1000
    assert histogram.range("minmax").amax == max(-histogram.low, histogram.high) <= histogram.limit


def test_minmax_keeps_all_and_the_others_clip_a_rare_outlier() -> None:
    values = np.append(normal(100_000), np.float32(100))
    chosen = {method: observed(values).range(method) for method in METHODS}
    assert chosen["minmax"].amax == 100
    for method in ("entropy", "percentile", "mse"):
        assert chosen[method].high == 100, "what was seen is remembered"
    assert chosen["percentile"].amax == pytest.approx(np.percentile(np.abs(values), PERCENTILE), rel=0.02)
    assert 3 < chosen["entropy"].amax < 20


def test_mse_chooses_the_threshold_that_costs_least() -> None:
    values = np.random.default_rng(0).laplace(size=200_000).astype(np.float32)
    amax = observed(values).range("mse").amax

    def cost(threshold: float) -> float:
        step = threshold / (LEVELS - 1)
        return float(np.mean((np.clip(np.rint(values / step), 1 - LEVELS, LEVELS - 1) * step - values) ** 2))

    tried = {threshold: cost(threshold) for threshold in np.linspace(1, np.abs(values).max(), 300)}
    assert cost(amax) <= min(tried.values()) * 1.02


def test_entropy_keeps_what_is_spread_evenly() -> None:
    values = np.random.default_rng(0).uniform(-3, 3, 200_000).astype(np.float32)
    assert observed(values).range("entropy").amax == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_has_a_range_of_width_zero(method: str) -> None:
    assert observed(np.zeros(10, np.float32)).range(method) == Range(0, 0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_zeros_before_the_first_number_are_counted(method: str) -> None:
    found = observed(np.zeros(10, np.float32), normal(1000)).range(method)
    assert 1 < found.amax < 5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_infinity_in_a_tensor_makes_its_range_endless(method: str, bad: float) -> None:
    found = observed(normal(100), np.array([1, bad], np.float32), normal(100)).range(method)
    assert found == Range(0, -math.inf, math.inf)
    assert found.seen == math.inf


def test_an_empty_tensor_says_nothing() -> None:
    assert observed(np.zeros((0, 4), np.float32)).range("minmax") == Range(0, 0, 0)


@pytest.fixture
def region(tmp_path: Path) -> Path:
    """Conv, Relu, Conv, Relu, with float32 input (batch, 3, 16, 16)."""
    return tiny.save(tiny.conv(layers=2), tmp_path / "model.onnx")


def images(count: int, batch: int = 2) -> Iterator[dict[str, np.ndarray]]:
    for seed in range(count):
        yield {"input_0": normal(batch * 3 * 16 * 16, seed).reshape(batch, 3, 16, 16)}


def test_ranges_are_those_of_the_tensors(region: Path, tmp_path: Path) -> None:
    calibrator = Calibrator(region, "minmax", scratch=tmp_path)
    expected = []
    for batch in images(3):
        calibrator.observe(batch)
        expected.append(tiny.run(onnx.load(region), batch["input_0"])[0])
    table = calibrator.table()
    assert (table.method, table.samples) == ("minmax", 3)
    (ranges,) = table.regions.values()
    assert set(ranges) == {"input_0", "conv_0", "relu_0", "conv_1", "output_0"}
    assert ranges["output_0"] == Range(float(np.max(expected)), 0, float(np.max(expected)))
    assert ranges["conv_0"].low < 0 == ranges["relu_0"].low
    assert set(tmp_path.iterdir()) == {region}, "nothing is left behind"


def test_memory_does_not_grow_with_the_number_of_batches(region: Path, tmp_path: Path) -> None:
    calibrator = Calibrator(region, "entropy", scratch=tmp_path)
    for batch in images(20):  # it keeps the inputs of up to 16 runs
        calibrator.observe(batch)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for batch in images(60):
        calibrator.observe(batch)
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_run = 5 * 2 * 8 * 16 * 16 * 4  # all activations of a batch
    assert after - before < one_run
    assert peak - before < 6 * one_run


def test_a_tensor_that_overflows_is_known_for_fp16_too(tmp_path: Path) -> None:
    nodes = [node("Mul", ["input_0", "scale"], "large"), node("Relu", ["large"], "output_0")]
    constants = {"scale": np.array(1e5, np.float32)}
    model = tiny.model(nodes, [tiny.value("input_0", [4])], [tiny.value("output_0", [4])], constants)
    calibrator = Calibrator(tiny.save(model, tmp_path / "model.onnx"), "minmax", scratch=tmp_path)
    calibrator.observe({"input_0": np.array([1, -2, 3, 4], np.float32)})
    (ranges,) = calibrator.table().regions.values()
    assert ranges["large"] == Range(4e5, -2e5, 4e5)


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        ({}, "inputs input_0 are missing"),
        ({"image": np.zeros((2, 3, 16, 16), np.float32)}, "inputs image, input_0 are missing or unknown"),
        ({"input_0": np.zeros((2, 3, 16, 16), np.float64)}, "input_0 is float64"),
        ({"input_0": np.zeros((3, 16, 16), np.float32)}, "its rank must be 4"),
        ({"input_0": np.zeros((2, 4, 16, 16), np.float32)}, "ONNX Runtime can't run"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    batch: dict[str, np.ndarray], problem: str, region: Path, tmp_path: Path
) -> None:
    calibrator = Calibrator(region, "minmax", scratch=tmp_path)
    with pytest.raises(CalibrationError, match=problem):
        calibrator.observe(batch)
    with pytest.raises(CalibrationError, match="no samples"):
        calibrator.table()


def test_nan_at_a_boundary_leaves_no_usable_range(region: Path, tmp_path: Path) -> None:
    calibrator = Calibrator(region, "percentile", scratch=tmp_path)
    for batch in images(2):
        calibrator.observe(batch)
    batch["input_0"][0, 0, 0, 0] = np.nan
    calibrator.observe(batch)
    (ranges,) = calibrator.table().regions.values()
    assert ranges["input_0"] == ranges["conv_0"] == Range(0, -math.inf, math.inf)


def test_an_unknown_method_is_refused(region: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="'median' is unknown"):
        Calibrator(region, "median", scratch=tmp_path)


TABLE = CalibrationTable("mse", 7, {"ab" * 32: {"x": Range(1.5, -1.0, 2.0), "endless": Range(0, -math.inf, math.inf)}})


def test_a_table_is_read_as_it_was_written_and_people_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    TABLE.write(path)
    assert CalibrationTable.read(path) == TABLE
    body = json.loads(path.read_text())
    assert body["regions"]["ab" * 32]["x"] == {"amax": 1.5, "min": -1.0, "max": 2.0}
    assert (body["version"], body["method"], body["samples"]) == (1, "mse", 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "another"}',
        json.dumps({"format": "graftrt calibration table", "version": 2}),
        json.dumps({"format": "graftrt calibration table", "version": 1, "method": "mse", "samples": 1}),
        json.dumps(
            {
                "format": "graftrt calibration table",
                "version": 1,
                "method": "mse",
                "samples": 1,
                "regions": {"ab": {"x": {"amax": -1, "min": 0, "max": 0}}},
            }
        ),
    ],
)
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=r"calibration\.json"):
        CalibrationTable.read(path)


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="can't be read"):
        CalibrationTable.read(tmp_path / "none.json")


def test_weights_beside_the_model_are_found(tmp_path: Path) -> None:
    values = tiny.weights(16, 8)
    model = tiny.matmul()
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx_files.stand_in("w", tiny.FLOAT, values.shape, "w"))
    onnx_files.save_model(model, tmp_path / "model.onnx", {"w": values})
    (tmp_path / "scratch").mkdir()
    calibrator = Calibrator(tmp_path / "model.onnx", "minmax", scratch=tmp_path / "scratch")
    x = normal(32).reshape(2, 16)
    calibrator.observe({"input_0": x})
    (ranges,) = calibrator.table().regions.values()
    assert ranges["output_0"].high == pytest.approx((x @ values).max(), rel=1e-5)
