"""Writing half precision into ONNX models: what changes, what must not, and what would overflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from stages.backends.base import BuildOptions
from stages.backends.isolated import Worker
from stages.errors import BuildError
from stages.precision import Range, convert
from tests import onnx_models as tiny
from tests.conftest import relative_error

FP16_ERROR = 2e-3
"""What a conversion accepts by default."""


def node(op: str, inputs: Sequence[str], output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, doc_string=f"tf:{output}", **attributes)


def number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def normalisation() -> onnx.ModelProto:
    """float32 (2, 3, 4, 16): values of about ±1000 are normalised over the last axis, as Keras exports it, and multiplied.

    Their squares overflow float16, and the epsilon vanishes in it.
    """
    nodes = [
        node("Conv", ["input_0", "w0"], "conv"),
        node("Mul", ["conv", "scale"], "x"),
        node("ReduceMean", ["x"], "mean", axes=[-1]),
        node("Sub", ["x", "mean"], "d"),
        node("Mul", ["d", "d"], "square"),
        node("ReduceMean", ["square"], "variance", axes=[-1]),
        node("Add", ["variance", "epsilon"], "safe"),
        node("Sqrt", ["safe"], "deviation"),
        node("Div", ["d", "deviation"], "normal"),
        node("MatMul", ["normal", "w1"], "output_0"),
    ]
    constants = {"w0": tiny.weights(3, 3, 1, 1), "scale": number(1000), "epsilon": number(1e-12)}
    constants["w1"] = tiny.weights(16, 8)
    return tiny.model(nodes, [tiny.value("input_0", [2, 3, 4, 16])], [tiny.value("output_0", [2, 3, 4, 8])], constants)


def masked_attention() -> onnx.ModelProto:
    """Scores float32 (2, 4, 8) of two matrices, masked by -1e9 where bool (2, 4, 8) is false, through Softmax."""
    nodes = [
        node("MatMul", ["input_0", "w"], "scores"),
        node("Cast", ["input_1"], "shown", to=tiny.FLOAT),
        node("Sub", ["one", "shown"], "hidden"),
        node("Mul", ["hidden", "far"], "penalty"),
        node("Add", ["scores", "penalty"], "masked"),
        node("Softmax", ["masked"], "output_0"),
    ]
    constants = {"w": tiny.weights(8, 8), "one": number(1), "far": number(-1e9)}
    inputs = [tiny.value("input_0", [2, 4, 8]), tiny.value("input_1", [2, 4, 8], tiny.BOOL)]
    return tiny.model(nodes, inputs, [tiny.value("output_0", [2, 4, 8])], constants)


def resized_top() -> onnx.ModelProto:
    """float32 (2, 3, 8, 8) through Conv, BatchNormalization, Resize; the five largest values and their indices."""
    nodes = [
        node("Conv", ["input_0", "w"], "conv", pads=[1] * 4),
        node("BatchNormalization", ["conv", "gamma", "beta", "mean", "variance"], "normal"),
        node("Resize", ["normal", "", "scales"], "large", mode="linear", coordinate_transformation_mode="asymmetric"),
        node("Reshape", ["large", "shape"], "flat"),
        helper.make_node("TopK", ["flat", "five"], ["output_0", "output_1"], "top"),
    ]
    constants = {
        "w": tiny.weights(8, 3, 3, 3),
        "gamma": np.ones(8, np.float32),
        "beta": np.zeros(8, np.float32),
        "mean": np.zeros(8, np.float32),
        "variance": np.ones(8, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "shape": np.array([0, -1], np.int64),
        "five": np.array([5], np.int64),
    }
    outputs = [tiny.value("output_0", [2, 5]), tiny.value("output_1", [2, 5], tiny.INT64)]
    return tiny.model(nodes, [tiny.value("input_0", [2, 3, 8, 8])], outputs, constants)


def recurrent() -> onnx.ModelProto:
    """A Loop whose body multiplies by weights and adds a tensor that the outer graph computes in half precision."""
    body = helper.make_graph(
        [
            node("Identity", ["go"], "go_on"),
            node("MatMul", ["state", "w"], "product"),
            node("Add", ["product", "outer"], "sum"),
            node("Tanh", ["sum"], "next_state"),
        ],
        "body",
        [tiny.value("step", [], tiny.INT64), tiny.value("go", [], tiny.BOOL), tiny.value("state", [2, 4])],
        [tiny.value("go_on", [], tiny.BOOL), tiny.value("next_state", [2, 4])],
    )
    nodes = [
        node("MatMul", ["input_0", "w"], "outer"),
        node("Loop", ["trips", "true", "outer"], "last", body=body),
        node("MatMul", ["last", "w"], "output_0"),
    ]
    constants = {"w": tiny.weights(4, 4), "trips": np.array(3, np.int64), "true": np.array(True)}
    return tiny.model(nodes, [tiny.value("input_0", [2, 4])], [tiny.value("output_0", [2, 4])], constants)


def branches() -> onnx.ModelProto:
    """An If on a bool input whose branches read a tensor that the outer graph computes in half precision."""
    then = helper.make_graph([node("MatMul", ["outer", "w"], "then_out")], "then", [], [tiny.value("then_out", [2, 4])])
    other = helper.make_graph([node("Relu", ["outer"], "else_out")], "else", [], [tiny.value("else_out", [2, 4])])
    nodes = [
        node("MatMul", ["input_0", "w"], "outer"),
        node("If", ["input_1"], "output_0", then_branch=then, else_branch=other),
    ]
    inputs = [tiny.value("input_0", [2, 4]), tiny.value("input_1", [], tiny.BOOL)]
    return tiny.model(nodes, inputs, [tiny.value("output_0", [2, 4])], {"w": tiny.weights(4, 4)})


def lstm() -> onnx.ModelProto:
    constants = {"w": tiny.weights(1, 16, 3), "r": tiny.weights(1, 16, 4)}
    nodes = [helper.make_node("LSTM", ["input_0", "w", "r"], ["output_0"], "lstm", hidden_size=4)]
    return tiny.model(nodes, [tiny.value("input_0", [5, 2, 3])], [tiny.value("output_0", [5, 1, 2, 4])], constants)


MODELS = {
    "conv": lambda: tiny.conv(layers=3, batch=2),
    "matmul": tiny.matmul,
    "normalisation": normalisation,
    "masked attention": masked_attention,
    "resized top": resized_top,
    "loop": recurrent,
    "if": branches,
    "lstm": lstm,
}


def inputs_of(model: onnx.ModelProto) -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    shapes = [
        (tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim), value.type.tensor_type.elem_type)
        for value in model.graph.input
    ]
    return [
        np.array(generator.random(shape) > 0.3)
        if dtype == tiny.BOOL
        else generator.standard_normal(shape).astype(np.float32)
        for shape, dtype in shapes
    ]


def computing_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each node's first output, by the node's name."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.output)}
    return {n.name: types[n.output[0]] for n in model.graph.node}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return MODELS[request.param]()


def test_the_result_is_valid_and_as_exact_as_half_precision(model: onnx.ModelProto) -> None:
    half = convert(model, "fp16")
    onnx.checker.check_model(half, full_check=True)
    inputs = inputs_of(model)
    expected, actual = tiny.run(model, *inputs)[0], tiny.run(half, *inputs)[0]
    error = relative_error(expected, actual)
    assert 0 < error < FP16_ERROR


def test_interface_and_provenance_stay(model: onnx.ModelProto) -> None:
    before = model.SerializeToString()
    half = convert(model, "fp16")
    assert list(half.graph.input) == list(model.graph.input)
    assert list(half.graph.output) == list(model.graph.output)
    kept = {n.name: n.doc_string for n in half.graph.node}
    assert all(kept[n.name] == n.doc_string for n in model.graph.node)
    stamps = {n.doc_string for n in model.graph.node}
    assert all(n.doc_string in stamps | {""} for n in half.graph.node)
    assert model.SerializeToString() == before, "the model given was changed"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tensorrt_takes_and_builds_the_result(
    model: onnx.ModelProto, precision: str, tmp_path: Path, rtx: Worker
) -> None:
    path = tiny.save(convert(model, precision), tmp_path / "m.onnx")
    support = rtx.check(path)
    assert support.accepted, support
    outcome = rtx.build(path, tmp_path / "plan", BuildOptions(precision))
    assert outcome.built, outcome.failure


@pytest.fixture(scope="module")
def rtx() -> object:
    pytest.importorskip("tensorrt_rtx")
    with Worker("tensorrt_rtx") as worker:
        yield worker


def test_multiplications_are_in_half_precision_and_their_weights_half_as_large() -> None:
    model = tiny.conv(layers=3)
    half = convert(model, "fp16")
    types = computing_types(half)
    assert {types[f"{op}_{i}"] for op in ("conv", "relu") for i in range(3)} == {tiny.HALF}
    assert [n.op_type for n in half.graph.node].count("Cast") == 2
    assert {tensor.data_type for tensor in half.graph.initializer} == {tiny.HALF}
    assert half.ByteSize() < 0.7 * model.ByteSize()


def test_a_normalisation_is_in_float32_throughout() -> None:
    types = computing_types(convert(normalisation(), "fp16"))
    assert types["conv"] == types["x"] == tiny.HALF
    for name in ("mean", "d", "square", "variance", "safe", "deviation", "normal"):
        assert types[name] == tiny.FLOAT, name


def test_a_constant_beyond_float16_stays_and_so_does_what_it_reaches() -> None:
    half = convert(masked_attention(), "fp16")
    types = computing_types(half)
    assert types["penalty"] == types["masked"] == types["output_0"] == tiny.FLOAT
    assert {t.name: t.data_type for t in half.graph.initializer}["far"] == tiny.FLOAT
    scores, mask = inputs_of(masked_attention())
    assert np.isfinite(tiny.run(half, scores, np.zeros_like(mask))[0]).all(), "masked as a whole"


@pytest.mark.parametrize(("length", "dtype"), [(64, tiny.HALF), (5000, tiny.FLOAT), (None, tiny.FLOAT)])
def test_only_short_softmaxes_are_in_half_precision(length: int | None, dtype: int) -> None:
    nodes = [
        node("Relu", ["input_0"], "relu"),
        node("Softmax", ["relu"], "probabilities"),
        node("Relu", ["probabilities"], "output_0"),
    ]
    model = tiny.model(nodes, [tiny.value("input_0", [2, length])], [tiny.value("output_0", [2, length])])
    assert computing_types(convert(model, "fp16"))["probabilities"] == dtype


def test_a_long_sum_does_not_overflow() -> None:
    nodes = [
        node("Relu", ["input_0"], "relu"),
        node("ReduceSum", ["relu", "axis"], "sum"),
        node("Div", ["sum", "many"], "output_0"),
    ]
    constants = {"axis": np.array([1], np.int64), "many": number(50000)}
    model = tiny.model(nodes, [tiny.value("input_0", [1, 70000])], [tiny.value("output_0", [1, 1])], constants)
    result = tiny.run(convert(model, "fp16"), np.ones((1, 70000), np.float32))[0]
    assert result == pytest.approx(1.4, rel=FP16_ERROR)


def test_integers_and_what_has_no_known_type_stay_as_they_are() -> None:
    half = convert(tiny.unknown_op(), "fp16")
    assert {n.name: n.domain for n in half.graph.node}["mine"] == "custom"
    cast = node("Cast", ["input_0"], "output_0", to=tiny.INT64)
    model = tiny.model([cast], [tiny.value("input_0", [2])], [tiny.value("output_0", [2], tiny.INT64)])
    assert tiny.run(convert(model, "fp16"), np.array([70000, 2049], np.float32))[0].tolist() == [70000, 2049]


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_float32_precisions_leave_the_model_alone(precision: str) -> None:
    model = tiny.conv()
    assert convert(model, precision) is model


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(BuildError, match="fp32, tf32, fp16"):
        convert(tiny.conv(), "int4")


def test_wrong_remarks_about_types_are_not_believed(rtx: Worker, tmp_path: Path) -> None:
    model = tiny.conv(batch=2)
    model.graph.value_info.append(tiny.value("conv_0", [2, 8, 16, 16], tiny.INT64))
    support = rtx.check(tiny.save(convert(model, "fp16"), tmp_path / "m.onnx"))
    assert support.bindings == (("input_0", "float32"), ("output_0", "float32"))


def test_bfloat16_computes_what_it_says() -> None:
    """ONNX's reference implementation, which has bfloat16 products; ONNX Runtime has none for a CPU."""
    from onnx.reference import ReferenceEvaluator

    model = tiny.matmul()
    small = convert(model, "bf16")
    assert computing_types(small)["matmul"] == onnx.TensorProto.BFLOAT16
    x = inputs_of(model)[0]
    (result,) = ReferenceEvaluator(small).run(None, {"input_0": x})
    assert 1e-4 < relative_error(tiny.run(model, x)[0], result) < 2e-2


def test_bfloat16_has_the_range_of_float32() -> None:
    nodes = [node("MatMul", ["input_0", "w"], "product"), node("Mul", ["product", "far"], "output_0")]
    constants = {"w": tiny.weights(16, 8), "far": number(1e9)}
    model = tiny.model(nodes, [tiny.value("input_0", [2, 16])], [tiny.value("output_0", [2, 8])], constants)
    assert {t.data_type for t in convert(model, "bf16").graph.initializer} == {onnx.TensorProto.BFLOAT16}
    assert {t.data_type for t in convert(model, "fp16").graph.initializer} == {tiny.HALF, tiny.FLOAT}
    types = computing_types(convert(normalisation(), "bf16"))
    assert types["conv"] == types["x"] == onnx.TensorProto.BFLOAT16
    assert types["mean"] == types["square"] == types["normal"] == tiny.FLOAT


LOUD = Range(5e4, -5e4, 1e3)


@pytest.mark.parametrize("tensor", ["conv_1", "relu_0"])
def test_what_overflowed_on_samples_is_made_and_read_in_float32(tensor: str) -> None:
    types = computing_types(convert(tiny.conv(layers=3), "fp16", ranges={tensor: LOUD}))
    assert types[tensor] == tiny.FLOAT
    assert types["conv_1"] == tiny.FLOAT, "it makes or reads the tensor"
    assert types["conv_0" if tensor == "conv_1" else "conv_2"] == tiny.HALF
    quiet = Range(3e4, -3e4, 0)
    assert computing_types(convert(tiny.conv(layers=3), "fp16", ranges={tensor: quiet}))[tensor] == tiny.HALF


def test_kept_ops_compute_in_float32() -> None:
    types = computing_types(convert(tiny.conv(layers=3), "fp16", keep=["conv_1"]))
    assert (types["conv_0"], types["conv_1"], types["conv_2"]) == (tiny.HALF, tiny.FLOAT, tiny.HALF)


@pytest.mark.parametrize(("size", "dtype"), [(8, tiny.HALF), (64, tiny.FLOAT)])
def test_means_over_many_elements_are_taken_in_float32(size: int, dtype: int) -> None:
    nodes = [
        node("Relu", ["input_0"], "relu"),
        node("AveragePool", ["relu"], "pool", kernel_shape=[size, size]),
        node("GlobalAveragePool", ["relu"], "mean"),
        node("Sub", ["pool", "mean"], "output_0"),
    ]
    model = tiny.model(nodes, [tiny.value("input_0", [1, 2, 64, 64])], [tiny.value("output_0", [None] * 4)])
    types = computing_types(convert(model, "fp16"))
    assert (types["relu"], types["pool"], types["mean"]) == (tiny.HALF, dtype, tiny.FLOAT)
