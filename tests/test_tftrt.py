"""TF-TRT's calls: signatures, parameters and environment variables, profile strategies."""

from __future__ import annotations

import inspect
import re
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.compiler.tensorrt import trt_convert

from pipeline import ConversionError
from pipeline import tftrt as trt
from pipeline.tftrt import params, shapes
from stages.errors import ArgumentError
from tests.test_architecture import ROOT

PAGE = (ROOT / "docs/migrating-from-tf-trt.md").read_text()


# -- the same calls


def parameters(function: object) -> list[tuple[str, object]]:
    found = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return [(parameter.name, parameter.default) for parameter in found]


@pytest.mark.parametrize(
    "name",
    [
        "TrtGraphConverterV2.__init__",
        "TrtGraphConverterV2.convert",
        "TrtGraphConverterV2.build",
        "TrtGraphConverterV2.save",
        "TrtGraphConverterV2.summary",
        "TrtGraphConverter.__init__",
        "TrtGraphConverter.convert",
        "TrtGraphConverter.calibrate",
        "TrtGraphConverter.save",
        "TrtConversionParams.__new__",
        "TrtPrecisionMode.supported_precision_modes",
        "get_tensorrt_rewriter_config",
        "supported_profile_strategies",
    ],
)
def test_names_order_and_defaults_of_parameters_are_tf_trts(name: str) -> None:
    def find(module: object) -> object:
        for part in name.split("."):
            module = getattr(module, part)
        return module

    ours, theirs = parameters(find(trt)), parameters(find(trt_convert))
    assert ours[1:] == theirs[1:] if name.endswith("__new__") else ours == theirs


def test_create_inference_graph_has_the_parameters_of_2018_and_those_added_later() -> None:
    ours, theirs = parameters(trt.create_inference_graph), dict(parameters(trt_convert.create_inference_graph))
    assert ours[:9] == [
        ("input_graph_def", inspect.Parameter.empty),
        ("outputs", inspect.Parameter.empty),
        ("max_batch_size", 1),
        ("max_workspace_size_bytes", 2 << 20),
        ("precision_mode", "FP32"),
        ("minimum_segment_size", 3),
        ("is_dynamic_op", False),
        ("maximum_cached_engines", 1),
        ("cached_engine_batches", None),
    ]
    later = {name: default for name, default in theirs.items() if name != "max_workspace_size_bytes"}
    assert later.items() <= dict(ours).items()
    assert parameters(trt.calib_graph_to_infer_graph) == [
        ("calibration_graph_def", inspect.Parameter.empty),
        ("is_dynamic_op", False),
    ]


def test_every_public_name_of_trt_convert_is_here() -> None:
    theirs = {
        name
        for name, value in vars(trt_convert).items()
        if not name.startswith("_") and (name.isupper() or getattr(value, "__module__", "") == trt_convert.__name__)
    }
    assert "TrtGraphConverterV2" in theirs
    assert theirs <= set(trt.__all__)
    constants = {name for name in theirs if name.isupper()} - {"DEFAULT_TRT_CONVERSION_PARAMS"}
    assert {name: getattr(trt, name) for name in constants} == {name: getattr(trt_convert, name) for name in constants}


def test_conversion_params_are_a_named_tuple_with_the_same_fields_and_defaults() -> None:
    assert trt.DEFAULT_TRT_CONVERSION_PARAMS._asdict() == trt_convert.DEFAULT_TRT_CONVERSION_PARAMS._asdict()
    changed = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(precision_mode=trt.TrtPrecisionMode.FP16)
    assert changed == trt.TrtConversionParams(precision_mode="FP16")
    modes = trt_convert.TrtPrecisionMode.supported_precision_modes()
    assert trt.TrtPrecisionMode.supported_precision_modes() == modes
    assert trt.supported_profile_strategies() == trt_convert.supported_profile_strategies()


def test_the_page_explains_every_call_parameter_and_variable() -> None:
    rows = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    explained = set(re.findall(r"`([\w.]+)`", "\n".join(line.split(" | ")[0] for line in rows.splitlines())))
    functions = [
        trt.TrtGraphConverter,
        trt.TrtGraphConverterV2,
        trt.create_inference_graph,
        trt.calib_graph_to_infer_graph,
        trt.get_tensorrt_rewriter_config,
        *(getattr(c, m) for c in (trt.TrtGraphConverterV2, trt.TrtGraphConverter) for m in ("convert", "save")),
        trt.TrtGraphConverterV2.build,
        trt.TrtGraphConverterV2.summary,
        trt.TrtGraphConverter.calibrate,
    ]
    names = {name for function in functions for name, _ in parameters(function) if name != "self"}
    assert names <= explained
    aliases = {"Converter", "ConversionParams"}
    assert {name for name in trt.__all__ if not name.startswith("PROFILE")} - aliases <= explained
    methods = {f"{c}.{m}" for c in ("TrtGraphConverter", "TrtGraphConverterV2") for m in ("convert", "save")}
    assert methods <= explained
    variables = {name for name in explained if name.startswith(("TF_TRT_", "TF_DEBUG_"))}
    assert variables == {
        *params._VARIABLES_WITHOUT_EFFECT,
        "TF_TRT_OP_DENYLIST",
        "TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION",
    }


# -- parameters


def test_parameters_and_variables_become_a_configuration() -> None:
    given = trt.TrtConversionParams(100 << 20, "fp16", 7)
    environment = {
        "TF_TRT_OP_DENYLIST": "Relu, MatMul",
        "TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION": "False",
    }
    config = params.config(given, environment)
    assert (config.precision, config.min_region, config.workspace_mib) == ("fp16", 7, 100)
    assert (config.keep_in_tf, config.on_failure) == (("Relu", "MatMul"), "fail")
    plain = params.config(trt.DEFAULT_TRT_CONVERSION_PARAMS, {})
    assert (plain.precision, plain.min_region, plain.workspace_mib, plain.keep_in_tf) == ("fp32", 3, None, ())
    assert plain.on_failure == "native"


@pytest.mark.parametrize("size", [2 << 20, 1 << 30, sys.maxsize - 512])
def test_the_defaults_that_tf_trt_had_do_not_limit_the_builder(size: int) -> None:
    assert params.config(trt.TrtConversionParams(max_workspace_size_bytes=size), {}).workspace_mib is None


def test_what_has_no_effect_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    params.warn_once.cache_clear()
    environment = {"TF_TRT_MAX_ALLOWED_ENGINES": "40"}
    for _ in range(2):
        params.config(trt.TrtConversionParams(1 << 20, maximum_cached_engines=16), environment)
    starts = sorted(message.split()[0] for message in caplog.messages)
    assert starts == [
        "TF_TRT_MAX_ALLOWED_ENGINES",
        "max_workspace_size_bytes=1048576",
        "maximum_cached_engines",
    ]


@pytest.mark.parametrize("allowed", [True, False])
def test_building_at_run_time_is_passed_on(allowed: bool) -> None:
    assert params.config(trt.TrtConversionParams(allow_build_at_runtime=allowed), {}).build_at_runtime is allowed


@pytest.mark.parametrize(
    "wrong",
    [
        {"precision_mode": "FP8"},
        {"minimum_segment_size": 0},
        {"minimum_segment_size": -2},
        {"max_workspace_size_bytes": 0},
        {"dynamic_shape_profile_strategy": "Widest"},
        {"input_saved_model_dir": None},
    ],
)
def test_wrong_arguments_are_value_errors_with_a_remedy(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="try: ") as caught:
        trt.TrtGraphConverterV2(**{"input_saved_model_dir": "model", **wrong})  # type: ignore[arg-type]
    assert isinstance(caught.value, ConversionError)


SPECS = {"a": tf.TensorSpec([None, None, 4]), "b": tf.TensorSpec([2])}
SEEN = (((2, 3, 4), (2,)), ((1, 5, 4), (2,)))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("Range", [((1, 3, 4), (2, 5, 4))]),
        ("Optimal", [((2, 3, 4), (2, 3, 4)), ((1, 5, 4), (1, 5, 4))]),
        ("Range+Optimal", [((2, 3, 4), (2, 3, 4)), ((1, 5, 4), (1, 5, 4)), ((1, 3, 4), (2, 5, 4))]),
        ("ImplicitBatchModeCompatible", [((1, 3, 4), (2, 3, 4)), ((1, 5, 4), (1, 5, 4))]),
    ],
)
def test_strategies_make_profiles_of_what_was_seen(strategy: str, expected: list[object]) -> None:
    assert shapes.strategy_named(strategy.lower()) == strategy
    ranges = shapes.profiles(SPECS, SEEN, strategy)
    assert [(r.minimum, r.maximum) for r in ranges if r.input == "a"] == expected
    assert {(r.minimum, r.optimum, r.maximum) for r in ranges if r.input == "b"} == {((2,),) * 3}
    assert all(r.optimum == r.maximum for r in ranges)


def test_inputs_come_as_arrays_lists_tuples_or_dicts() -> None:
    a, b = np.zeros((2, 3, 4)), [1.0, 2.0]
    for item in ([a, b], (a, b), {"b": b, "a": a}):
        seen = shapes.see(SPECS, lambda item=item: iter([item, item]))  # type: ignore[misc]
        assert seen.shapes == (((2, 3, 4), (2,)),)
        assert {name: array.dtype.name for name, array in seen.first.items()} == {"a": "float32", "b": "float32"}
    assert shapes.see({"a": SPECS["a"]}, lambda: iter([a])).shapes == (((2, 3, 4),),)
    for wrong in ([a], {"a": a}, {"a": a, "c": b}, [a, "text"]):
        with pytest.raises(ArgumentError):
            shapes.see(SPECS, lambda wrong=wrong: iter([wrong]))  # type: ignore[misc]
    with pytest.raises(ArgumentError, match="different numbers of axes"):
        shapes.see({"c": tf.TensorSpec(None)}, lambda: iter([[1.0], [[1.0]]]))
    with pytest.raises(ArgumentError, match="yields nothing"):
        shapes.see(SPECS, lambda: iter([]))
