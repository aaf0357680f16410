"""Whether an engine computes in what was asked for: what a model states, what TensorRT parsed and what an engine tells."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stages.backends.base import BuildOptions, BuildOutcome
from stages.backends.inspector import engine_layers, parse_layers
from stages.backends.isolated import Worker
from stages.engine_types import TypedLayer, asked_types, compare_network, confirm
from stages.enginecache import EngineCache, compile_region
from stages.precision import convert
from tests import onnx_models as tiny
from tests.test_precision import lstm, recurrent


def quantised() -> onnx.ModelProto:
    """A Conv between QuantizeLinear and DequantizeLinear, its weights too, then a Conv that is not."""
    nodes = [
        helper.make_node("QuantizeLinear", ["input_0", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["wq", "scale", "zero"], ["w"], "dequantize_w"),
        helper.make_node("Conv", ["d", "w"], ["c"], "small", pads=[1] * 4),
        helper.make_node("Conv", ["c", "w1"], ["output_0"], "large", pads=[1] * 4),
    ]
    constants = {
        "scale": np.array(0.02, np.float32),
        "zero": np.array(0, np.int8),
        "wq": np.random.default_rng(0).integers(-99, 99, (8, 3, 3, 3)).astype(np.int8),
        "w1": tiny.weights(8, 8, 3, 3),
    }
    return tiny.model(
        nodes, [tiny.value("input_0", [2, 3, 16, 16])], [tiny.value("output_0", [2, 8, 16, 16])], constants
    )


def build(proto: onnx.ModelProto, folder: Path, cache: EngineCache | None = None) -> BuildOutcome:
    pytest.importorskip("tensorrt_rtx")
    model = tiny.save(proto, folder / "model.onnx")
    with Worker("tensorrt_rtx") as worker:
        return compile_region(worker, model, "digest", BuildOptions(), folder / "plan", cache=cache)


def test_a_model_states_the_type_of_each_product() -> None:
    assert asked_types(quantised()) == {"small": "int8", "large": "float32"}
    assert asked_types(convert(tiny.conv(layers=2, batch=1), "fp16")) == {"conv_0": "float16", "conv_1": "float16"}
    assert asked_types(lstm()) == {"lstm": "float32"}
    inside = asked_types(convert(recurrent(), "fp16"))
    assert set(inside.values()) == {"float16"}
    assert "product" in inside, "the body of a loop counts"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_network_that_tensorrt_parses_has_the_types_of_the_model(precision: str, tmp_path: Path) -> None:
    proto = convert(tiny.conv(layers=2, batch=1), precision)
    outcome = build(proto, tmp_path)
    types = compare_network(asked_types(proto), outcome.network)
    assert types.network == {"float16" if precision == "fp16" else "float32": 2}
    assert types.confirmed is None
    assert types.why_not == "the engine was not opened"


def test_int8_is_seen_in_the_network_and_kept_with_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTRT_CACHE_DIR", str(tmp_path / "cache"))
    first, second = (build(quantised(), tmp_path, EngineCache()) for _ in range(2))
    assert first.built, first.failure
    assert [(layer.onnx, layer.types) for layer in first.network] == [
        (("small",), ("int8",)),
        (("large",), ("float32",)),
    ]
    assert second.cached
    assert second.network == first.network


def test_a_type_that_the_parser_changed_is_a_mismatch() -> None:
    types = compare_network({"a": "float16", "b": "float16"}, [TypedLayer("a", ("a",), ("float32",))])
    assert types.confirmed is False
    assert types.why_not == "TensorRT's parser changed types: a is float32 instead of float16"
    assert confirm(types, [TypedLayer("a", ("a",), ("float16",))]).confirmed is False


def engine(*layers: object) -> str:
    return json.dumps({"Layers": list(layers), "Bindings": ["x", "y"]})


def layer(name: str, kind: str, source: object, **more: object) -> dict[str, object]:
    entry = {
        "Name": name,
        "LayerType": kind,
        "Inputs": [source],
        "Outputs": [source],
        "TacticValue": "0x0",
        "StreamId": 0,
    }
    return entry | more


def tensor(**types: str) -> dict[str, object]:
    return {"Name": "x", "Location": "Device", "Dimensions": [1, 16, 8, 8], **types}


FORMATS = {
    "Row major linear FP32": "float32",
    "Float": "float32",
    "Channel major FP16 format where channel % 8 == 0": "float16",
    "Half": "float16",
    "Row major linear BFloat16 format": "bfloat16",
    "BF16 NHWC": "bfloat16",
    "Thirty-two wide channel vectorized row major Int8 format.": "int8",
    "Int8 NC/32HW32": "int8",
    "FP8": "float8",
    "Row major linear FP8 format (kLINEAR)": "float8",
}


@pytest.mark.parametrize("words", FORMATS)
def test_every_way_in_which_tensorrt_says_a_type_is_understood(words: str) -> None:
    (found,) = parse_layers(engine(layer("conv", "CaskConvolution", tensor(**{"Format/Datatype": words}))))
    assert found == TypedLayer("conv", ("conv",), (FORMATS[words],))


@pytest.mark.parametrize(
    "words", ["N/A due to dynamic shapes", "UInt8", "Int32", "Bool", "Int64", "Row major linear INT32 format"]
)
def test_other_types_and_none_are_no_type_of_a_product(words: str) -> None:
    (found,) = parse_layers(engine(layer("conv", "CaskConvolution", tensor(**{"Format/Datatype": words}))))
    assert found.types == ()


def test_what_tensorrt_11_tells_in_two_fields_is_read_too() -> None:
    source = tensor(Format="Row major linear FP16 format (kLINEAR)", DataType="Half")
    (found,) = parse_layers(engine(layer("a + b", "CaskGemmConvolution", source)))
    assert found == TypedLayer("a + b", ("a", "b"), ("float16",))


def test_weights_kernels_and_metadata_say_what_a_fused_layer_computes() -> None:
    quantised = layer(
        "quantize + conv + relu",
        "CaskConvolution",
        tensor(**{"Format/Datatype": "Row major linear FP32"}),
        Weights={"Type": "Int8", "Count": 131072},
        Metadata="[ONNX Layer: quantize]\x1e[ONNX Layer: conv]\x1e[ONNX Layer: relu]",
        TacticName="sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw",
    )
    gemm = layer(
        "__myl_fc_myl0_3", "gemm", tensor(), TacticName="sm80_xmma_gemm_f16f16_f16f32_f16_tn_n_tilesize64x64x64_stage4"
    )
    first, second = parse_layers(engine(quantised, gemm))
    assert first.onnx == ("quantize", "conv", "relu")
    assert first.types == ("float32", "int8")
    assert second.types == ("float16",)


def test_an_engine_of_names_only_and_a_fused_one_tell_no_types() -> None:
    names = parse_layers('{"Layers": ["conv + relu", "pool"]}')
    assert [found.name for found in names] == ["conv + relu", "pool"]
    fused = parse_layers(engine(layer("{ForeignNode[cast...conv]}", "Myelin", tensor(**{"Format/Datatype": "Float"}))))
    assert [found.types for found in (*names, *fused)] == [()] * 3
    asked = compare_network({"conv": "float16"}, [TypedLayer("conv", ("conv",), ("float16",))])
    for layers in (names, fused, (TypedLayer("conv", ("conv",)),)):
        answer = confirm(asked, layers)
        assert answer.confirmed is None
        assert "does not tell" in answer.why_not


def test_an_engine_is_confirmed_where_every_product_has_its_type() -> None:
    asked = compare_network({"a": "int8", "b": "float16"}, [])
    right = [
        TypedLayer("a", ("a",), ("float32", "int8")),
        TypedLayer("b + c", ("b", "c"), ("float16",)),
        TypedLayer("d"),
    ]
    answer = confirm(asked, right)
    assert (answer.confirmed, answer.found, answer.why_not) == (True, {"int8": 1, "float16": 1}, "")
    wrong = confirm(asked, [*right, TypedLayer("a2", ("a",), ("float16",))])
    assert wrong.confirmed is False
    assert wrong.why_not == "the engine has other types: a is float16 instead of int8"
    assert confirm(asked, right[:1]).confirmed is None
    unopened = confirm(asked, (), "no GPU")
    assert (unopened.confirmed, unopened.why_not) == (None, "no GPU")


def test_a_region_without_products_has_nothing_to_confirm() -> None:
    relu = tiny.model(
        [helper.make_node("Relu", ["input_0"], ["output_0"], "r")],
        [tiny.value("input_0", [2])],
        [tiny.value("output_0", [2], TensorProto.FLOAT)],
    )
    types = compare_network(asked_types(relu), [])
    assert confirm(types, [TypedLayer("r", ("r",), ("float16",))]) == types
    assert types.why_not == "nothing in it multiplies"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_built_engine_has_the_types_that_were_asked_for(precision: str, tmp_path: Path) -> None:
    proto = quantised() if precision == "int8" else convert(tiny.conv(layers=2, batch=2), precision)
    outcome = build(proto, tmp_path)
    assert outcome.built, outcome.failure
    (layers,) = engine_layers("tensorrt_rtx", [tmp_path / "plan"])
    assert layers.layers, layers.why_not
    types = confirm(compare_network(asked_types(proto), outcome.network), layers.layers, layers.why_not)
    print(types, layers)  # what the library tells differs by version
    assert types.confirmed is not False, types.why_not
    assert types.confirmed or "does not tell" in types.why_not
