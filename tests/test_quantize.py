"""Q/DQ pairs in ONNX models: where they stand, what they cost, and that TensorRT builds what they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stages import onnx_files
from stages.backends.base import BuildOptions
from stages.backends.isolated import Worker
from stages.errors import BuildError
from stages.precision import Range, convert
from stages.precision.calibration import Calibrator
from stages.precision.fp8 import with_casts
from tests import onnx_models as tiny
from tests.conftest import relative_error
from tests.test_precision import inputs_of, node

IMAGE = [2, 3, 12, 12]
INT8_ERROR, FP8_ERROR = 0.05, 0.2
"""Of these few layers with random weights, relative to the largest output."""


def image_model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], rank: int = 4) -> onnx.ModelProto:
    """A model with float32 input (2, 3, 12, 12); the output's sizes are left open."""
    outputs = [tiny.value("output_0", [None] * rank)]
    return tiny.model(nodes, [tiny.value("input_0", IMAGE)], outputs, constants)


def residual() -> onnx.ModelProto:
    """A bottleneck as in ResNet: two convolutions and a third on the shortcut, added; then one whose input is added to it."""
    nodes = [
        node("Conv", ["input_0", "w0", "b0"], "a", pads=[1] * 4),
        node("Relu", ["a"], "ra"),
        node("Conv", ["input_0", "w1"], "shortcut"),
        node("Conv", ["ra", "w2"], "b", pads=[1] * 4),
        node("Add", ["shortcut", "b"], "sum_0"),
        node("Relu", ["sum_0"], "rs"),
        node("Conv", ["rs", "w3"], "c", pads=[1] * 4),
        node("Add", ["c", "rs"], "sum_1"),
        node("Relu", ["sum_1"], "output_0"),
    ]
    constants = {"w0": tiny.weights(8, 3, 3, 3), "w1": tiny.weights(8, 3, 1, 1, seed=1), "b0": np.ones(8, np.float32)}
    constants |= {f"w{i}": tiny.weights(8, 8, 3, 3, seed=i) for i in (2, 3)}
    return image_model(nodes, constants)


def inception() -> onnx.ModelProto:
    """Two convolutions and a pooled branch of one tensor, concatenated and read by a convolution; pooled, and a dense layer."""
    nodes = [
        node("Conv", ["input_0", "w0"], "stem"),
        node("Relu", ["stem"], "x"),
        node("Conv", ["x", "w1"], "left"),
        node("Conv", ["x", "w2"], "right", pads=[1] * 4),
        node("AveragePool", ["x"], "pooled", kernel_shape=[3, 3], pads=[1] * 4),
        node("MaxPool", ["x"], "largest", kernel_shape=[3, 3], pads=[1] * 4),
        node("Concat", ["left", "right", "pooled", "largest"], "all", axis=1),
        node("Conv", ["all", "w3"], "last"),
        node("GlobalAveragePool", ["last"], "mean"),
        node("Flatten", ["mean"], "flat"),
        node("Gemm", ["flat", "w4", "b4"], "output_0", transB=1),
    ]
    constants = {"w0": tiny.weights(8, 3, 1, 1), "w1": tiny.weights(8, 8, 1, 1), "w2": tiny.weights(8, 8, 3, 3)}
    constants |= {"w3": tiny.weights(16, 32, 1, 1), "w4": tiny.weights(5, 16), "b4": np.ones(5, np.float32)}
    return image_model(nodes, constants, rank=2)


def upsampling() -> onnx.ModelProto:
    """ConvTranspose whole and in groups, and a depthwise convolution."""
    nodes = [
        node("ConvTranspose", ["input_0", "w0"], "a", strides=[2, 2]),
        node("Relu", ["a"], "ra"),
        node("Conv", ["ra", "w1"], "b", group=8),
        node("ConvTranspose", ["b", "w2"], "output_0", strides=[2, 2], group=2),
    ]
    constants = {"w0": tiny.weights(3, 8, 2, 2), "w1": tiny.weights(8, 1, 3, 3), "w2": tiny.weights(8, 3, 2, 2)}
    return image_model(nodes, constants)


def feed_forward() -> onnx.ModelProto:
    """An encoder's block: two dense layers with biases, added to their input; weights on the left of a third; Gemm."""
    nodes = [
        node("MatMul", ["input_0", "w0"], "a"),
        node("Add", ["a", "b0"], "ab"),
        node("Relu", ["ab"], "g"),
        node("MatMul", ["g", "w1"], "c"),
        node("Add", ["c", "b1"], "cb"),
        node("Add", ["input_0", "cb"], "sum"),
        node("MatMul", ["w2", "sum"], "left"),
        node("Gemm", ["left", "w3", "b3"], "output_0"),
    ]
    constants = {
        "w0": tiny.weights(16, 32),
        "w1": tiny.weights(32, 16),
        "w2": tiny.weights(6, 6),
        "w3": tiny.weights(16, 4),
    }
    constants |= {"b0": np.ones(32, np.float32), "b1": np.ones(16, np.float32), "b3": np.ones(4, np.float32)}
    return tiny.model(nodes, [tiny.value("input_0", [6, 16])], [tiny.value("output_0", [6, 4])], constants)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "conv": lambda: tiny.conv(layers=3, batch=2),
    "matmul": tiny.matmul,
    "residual": residual,
    "inception": inception,
    "upsampling": upsampling,
    "feed forward": feed_forward,
}


def ranges_of(model: onnx.ModelProto, folder: Path, method: str = "minmax") -> dict[str, Range]:
    calibrator = Calibrator(tiny.save(model, folder / "float.onnx"), method, scratch=folder)
    calibrator.observe({f"input_{i}": array for i, array in enumerate(inputs_of(model))})
    (ranges,) = calibrator.table().regions.values()
    return dict(ranges)


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def rtx() -> Iterator[Worker]:
    pytest.importorskip("tensorrt_rtx")
    with Worker("tensorrt_rtx") as worker:
        yield worker


def pairs(model: onnx.ModelProto) -> dict[str, str]:
    """What each 8-bit activation that a node reads is made of: consumer's name and the tensor's, by edge."""
    quantised = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    back = {n.output[0]: quantised[n.input[0]] for n in model.graph.node if n.input[0] in quantised}
    return {
        f"{n.name}:{place}": back[name] for n in model.graph.node for place, name in enumerate(n.input) if name in back
    }


@pytest.mark.parametrize("rest", ["fp16", "fp32"])
def test_int8_is_valid_and_close(model: onnx.ModelProto, rest: str, tmp_path: Path) -> None:
    quantised = convert(model, "int8", ranges=ranges_of(model, tmp_path), rest=rest)
    onnx.checker.check_model(quantised, full_check=True)
    assert list(quantised.graph.input) == list(model.graph.input)
    inputs = inputs_of(model)
    expected = tiny.run(model, *inputs)[0]
    assert 0 < relative_error(expected, unoptimised(quantised, *inputs)) < INT8_ERROR
    if rest == "fp32":  # as the CPU engine runs it
        assert 0 < relative_error(expected, tiny.run(quantised, *inputs)[0]) < INT8_ERROR


def unoptimised(model: onnx.ModelProto, *inputs: np.ndarray) -> np.ndarray:
    """What the nodes say, one by one: ONNX Runtime's optimisation is wrong beside float16 (see `stages/precision/fp8.py`)."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {f"input_{i}": array for i, array in enumerate(inputs)})[0]
    return result


def test_fp8_is_valid_and_close_and_its_casts_say_the_same(model: onnx.ModelProto, tmp_path: Path) -> None:
    ranges, inputs = ranges_of(model, tmp_path), inputs_of(model)
    paired = convert(model, "fp8", ranges=ranges, rest="fp32")
    onnx.checker.check_model(paired, full_check=True)
    expected = unoptimised(paired, *inputs)
    assert 0 < relative_error(tiny.run(model, *inputs)[0], expected) < FP8_ERROR
    assert relative_error(expected, tiny.run(with_casts(paired), *inputs)[0]) < 1e-5


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_tensorrt_builds_it(model: onnx.ModelProto, precision: str, tmp_path: Path, rtx: Worker) -> None:
    quantised = convert(model, precision, ranges=ranges_of(model, tmp_path))
    path = tiny.save(quantised, tmp_path / "m.onnx")
    support = rtx.check(path)
    assert support.accepted, support
    assert support.bindings[0][1] == support.bindings[-1][1] == "float32"
    outcome = rtx.build(path, tmp_path / "plan", BuildOptions(precision, capabilities=("8.9",)))
    assert outcome.built, outcome.failure


def test_a_residual_sum_reads_the_branch_that_it_is_not_fused_into(tmp_path: Path) -> None:
    model = residual()
    found = pairs(convert(model, "int8", ranges=ranges_of(model, tmp_path), rest="fp32"))
    assert {edge: source for edge, source in found.items() if edge.startswith("sum")} == {
        "sum_0:0": "shortcut",  # `b` is made last: its convolution adds the shortcut to its own result
        "sum_1:1": "rs",
    }
    assert {source for edge, source in found.items() if not edge.startswith("sum")} == {"input_0", "ra", "rs"}


def test_a_residual_sum_after_a_bias_counts_too(tmp_path: Path) -> None:
    model = feed_forward()
    found = pairs(convert(model, "int8", ranges=ranges_of(model, tmp_path), rest="fp32"))
    assert found["sum:0"] == "input_0"
    assert "sum:1" not in found


def test_concatenated_branches_share_one_scale_and_pools_read_what_is_quantised_anyway(tmp_path: Path) -> None:
    model = inception()
    quantised = convert(model, "int8", ranges=ranges_of(model, tmp_path), rest="fp32")
    found = pairs(quantised)
    assert found["last:0"] == "all"
    assert found["pooled:0"] == found["largest:0"] == found["left:0"] == "x"
    assert not any(edge.startswith("all") for edge in found)
    sources = [n.input[0] for n in quantised.graph.node if n.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources)), "a tensor is quantised once"


@pytest.mark.parametrize(("name", "axis"), [("conv", 0), ("matmul", 1), ("upsampling", 1)])
def test_weights_are_stored_in_8_bits_with_a_scale_for_each_output_channel(
    name: str, axis: int, tmp_path: Path
) -> None:
    model = MODELS[name]()
    quantised = convert(model, "int8", ranges=ranges_of(model, tmp_path))
    stored = {t.name: numpy_helper.to_array(t) for t in quantised.graph.initializer}
    (first, *_) = [n for n in quantised.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    values, scales = stored[first.input[0]], stored[first.input[1]]
    assert values.dtype == np.int8
    assert scales.shape == (values.shape[axis],)
    others = tuple(i for i in range(values.ndim) if i != axis)
    assert (np.abs(values.astype(int)).max(others) >= 126).all(), "every channel uses its range"
    assert not any(t.data_type == tiny.FLOAT and math.prod(t.dims) > 16 for t in quantised.graph.initializer)


def test_large_weights_beside_the_model_stay_there(tmp_path: Path) -> None:
    key, values = "big", tiny.weights(16, 8)
    model = tiny.matmul()
    del model.graph.initializer[:]
    model.graph.initializer.append(onnx_files.stand_in("w", tiny.FLOAT, values.shape, key))
    weights: dict[str, np.ndarray] = {key: values}
    quantised = convert(model, "int8", weights, ranges={"input_0": Range(3, -3, 3)}, rest="fp32")
    path = tmp_path / "m.onnx"
    onnx_files.save_model(quantised, path, weights)
    (file,) = onnx_files.files_beside(path)
    assert file.stat().st_size == values.size
    whole = onnx.load_from_string(onnx_files.as_one_file(path))
    x = inputs_of(model)[0]
    assert relative_error(x @ values, tiny.run(whole, x)[0]) < INT8_ERROR


ZERO_WIDTH = Range(0.0, 0.0, 0.0)
ENDLESS = Range(0.0, -math.inf, math.inf)


@pytest.mark.parametrize("unusable", [ZERO_WIDTH, ENDLESS, None])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_what_has_no_usable_range_is_left_alone(unusable: Range | None, precision: str, tmp_path: Path) -> None:
    model = residual()
    ranges = ranges_of(model, tmp_path)
    ranges.pop("rs")
    if unusable is not None:
        ranges["rs"] = unusable
    found = pairs(convert(model, precision, ranges=ranges, rest="fp32"))
    assert set(found.values()) == {"input_0", "ra", "shortcut"}


def test_nothing_to_quantise_is_an_error() -> None:
    with pytest.raises(BuildError, match="nothing in it can be quantised"):
        convert(tiny.matmul(), "int8", ranges={"input_0": ZERO_WIDTH})
    with pytest.raises(BuildError, match="nothing in it can be quantised"):
        convert(tiny.unknown_op(), "int8", ranges={"input_0": Range(1, -1, 1)})


def test_a_channel_of_zeros_stays_zero(tmp_path: Path) -> None:
    model = tiny.conv(batch=2)
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values[3] = 0
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w0"))
    quantised = convert(model, "int8", ranges=ranges_of(model, tmp_path), rest="fp32")
    result = tiny.run(quantised, *inputs_of(model))[0]
    assert np.isfinite(result).all()
    assert (result[:, 3] == 0).all()


def test_kept_ops_are_neither_quantised_nor_in_half_precision(tmp_path: Path) -> None:
    model = residual()
    quantised = convert(model, "int8", ranges=ranges_of(model, tmp_path), keep=["b"])
    (kept,) = [n for n in quantised.graph.node if n.name == "b"]
    assert kept.input[1] == "w2"
    assert kept.output[0] == "b"
    assert "b:0" not in pairs(quantised)


def test_scales_are_numbers_that_float16_has(tmp_path: Path) -> None:
    model = residual()
    ranges = {name: Range(r.amax / 3e5, r.low, r.high) for name, r in ranges_of(model, tmp_path).items()}
    quantised = convert(model, "int8", ranges=ranges, rest="fp32")
    scales = {n.input[1] for n in quantised.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    for tensor in quantised.graph.initializer:
        if tensor.name in scales:
            values = numpy_helper.to_array(tensor)
            assert (values.astype(np.float16).astype(np.float32) == values).all()
            assert (values > 0).all()


def test_reductions_and_splits_of_older_op_sets_keep_their_meaning(tmp_path: Path) -> None:
    nodes = [
        node("Conv", ["input_0", "w"], "a"),
        helper.make_node("Split", ["a"], ["left", "right"], "split", axis=1),
        node("ReduceMean", ["left"], "mean", axes=[2, 3], keepdims=1),
        node("ReduceMax", ["right"], "most", axes=[2, 3], keepdims=1),
        node("Add", ["mean", "most"], "output_0"),
    ]
    model = image_model(nodes, {"w": tiny.weights(8, 3, 1, 1)})
    quantised = convert(model, "int8", ranges=ranges_of(model, tmp_path), rest="fp32")
    onnx.checker.check_model(quantised, full_check=True)
    inputs = inputs_of(model)
    assert relative_error(tiny.run(model, *inputs)[0], tiny.run(quantised, *inputs)[0]) < INT8_ERROR


@pytest.mark.parametrize(("precision", "share"), [("fp16", 0.5), ("int8", 0.25), ("fp8", 0.25)])
def test_a_plan_holds_weights_as_small_as_the_precision(
    precision: str, share: float, tmp_path: Path, rtx: Worker
) -> None:
    side = 2048
    nodes = [node("MatMul", ["input_0", "w"], "output_0")]
    inputs, outputs = [tiny.value("input_0", [64, side])], [tiny.value("output_0", [64, side])]
    model = tiny.model(nodes, inputs, outputs, {"w": tiny.weights(side, side)})
    path = tiny.save(convert(model, precision, ranges={"input_0": Range(4, -4, 4)}), tmp_path / "m.onnx")
    assert rtx.build(path, tmp_path / "plan", BuildOptions(precision, capabilities=("8.9",))).built
    weights, kernels = 4 * side**2, 3e6
    assert share * weights <= (tmp_path / "plan").stat().st_size <= share * weights + kernels
