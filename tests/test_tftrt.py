"""TF-TRT's calls: signatures, parameters, the converter for SavedModels, and the complaints of its users."""

from __future__ import annotations

import gc
import inspect
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.compiler.tensorrt import trt_convert

from fixtures import tftrt as models
from fixtures import vision
from fixtures.example import Example
from pipeline import ConversionError
from pipeline import tftrt as trt
from pipeline.tftrt import params, shapes
from stages import engine_op
from stages.errors import ArgumentError, ArtifactError, OrderError, UnsupportedError
from stages.translate import UNSAFE
from tests.conftest import relative_error
from tests.test_architecture import ROOT
from tests.test_docs import RUNNABLE

FP32 = 1e-5
PAGE = (ROOT / "docs/migrating-from-tf-trt.md").read_text()


def saved(example: Example, folder: Path) -> str:
    return str(example.save(folder / "model"))


def summary_of(converter: trt.TrtGraphConverterV2) -> str:
    lines: list[str] = []
    converter.summary(print_fn=lines.append)
    return "\n".join(lines)


def assert_equals(example: Example, function: Callable[..., dict[str, tf.Tensor]]) -> None:
    actual = function(**{name: tf.constant(value) for name, value in example.inputs.items()})
    for name, expected in example.run().items():
        if expected.dtype.kind == "f" and expected.size:
            assert relative_error(expected, actual[name].numpy()) <= FP32
        else:
            assert np.array_equal(expected, actual[name].numpy())


def profiles_of(saved_model: Path) -> list[list[list[object]]]:
    """The profiles of the plan for GPUs in the only EngineCall of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.ParseFromString((saved_model / "saved_model.pb").read_bytes())
    functions = message.meta_graphs[0].graph_def.library.function
    calls = [node for function in functions for node in function.node_def if node.op == "EngineCall"]
    (plan,) = (p for p in json.loads(calls[0].attr["interface"].s)["plans"] if p["device"] == "gpu")
    return list(plan["profiles"])


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
        "allow_build_at_runtime",
        "max_workspace_size_bytes=1048576",
        "maximum_cached_engines",
    ]
    caplog.clear()
    params.warn_once.cache_clear()
    params.config(trt.TrtConversionParams(allow_build_at_runtime=False), {})
    assert not caplog.messages


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


@pytest.mark.parametrize("mode", ["INT8", "int8"])
def test_int8_is_refused_and_never_something_else(mode: str) -> None:
    calls = [
        lambda: trt.TrtGraphConverterV2("model", precision_mode=mode).convert(lambda: iter([])),
        lambda: trt.TrtGraphConverter("model", precision_mode=mode).convert(),
        lambda: trt.TrtGraphConverter("model").calibrate(["y:0"], 1, lambda: {}),
        lambda: trt.create_inference_graph(models.frozen_graph(), ["probs"], precision_mode=mode),
        lambda: trt.calib_graph_to_infer_graph(models.frozen_graph()),
    ]
    for call in calls:
        with pytest.raises(NotImplementedError, match=r"(?s)INT8.*try: precision_mode='FP16'") as caught:
            call()
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


# -- converting a SavedModel


@pytest.fixture(scope="module")
def converter(tmp_path_factory: pytest.TempPathFactory) -> trt.TrtGraphConverterV2:
    return trt.TrtGraphConverterV2(saved(models.two_inputs(), tmp_path_factory.mktemp("two_inputs")))


@pytest.fixture(scope="module")
def function(converter: trt.TrtGraphConverterV2) -> tf.types.experimental.ConcreteFunction:
    return converter.convert()


def test_the_converted_function_takes_keywords_and_positions_and_runs_engines(
    function: tf.types.experimental.ConcreteFunction,
) -> None:
    example = models.two_inputs()
    assert isinstance(function, tf.types.experimental.ConcreteFunction)
    engine_op.reset_stats()
    assert_equals(example, function)
    by_position = function(tf.constant(example.inputs["a"]), tf.constant(example.inputs["b"]))
    assert relative_error(example.run()["y"], by_position["y"].numpy()) <= FP32
    assert engine_op.stats() == {"region_0": {"engine_calls": 2, "fallbacks": {}}}


def test_a_saved_model_has_its_engines_its_other_signatures_and_the_options(
    converter: trt.TrtGraphConverterV2, function: object, tmp_path: Path
) -> None:
    example = models.two_inputs()
    converter.save(str(tmp_path / "plain"))
    loaded = tf.saved_model.load(str(tmp_path / "plain"))
    assert set(loaded.signatures) == {"serving_default", "other"}
    engine_op.reset_stats()
    assert_equals(example, loaded.signatures["serving_default"])
    assert engine_op.stats() == {"region_0": {"engine_calls": 1, "fallbacks": {}}}
    options = tf.saved_model.SaveOptions(save_debug_info=True)
    converter.save(str(tmp_path / "plain"), options=options)
    assert (tmp_path / "plain/debug/saved_model_debug_info.pb").exists()
    engine_op.reset_stats()
    assert_equals(example, tf.saved_model.load(str(tmp_path / "plain")).signatures["serving_default"])
    assert engine_op.stats() == {"region_0": {"engine_calls": 1, "fallbacks": {}}}
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_save_replaces_no_folder_that_holds_something_else(
    converter: trt.TrtGraphConverterV2, function: object, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already"):
        converter.save(str(tmp_path))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_engines_of_one_gpu_are_not_left_out_silently(
    converter: trt.TrtGraphConverterV2, function: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converter.save(str(tmp_path / "portable"), save_gpu_specific_engines=False)
    conversion = converter._conversion
    assert conversion is not None
    (region,) = conversion.report.regions
    bound = replace(region, engines=(replace(region.engines[0], backend="tensorrt"),))
    report = replace(conversion.report, regions=(bound,))
    monkeypatch.setattr(converter, "_conversion", replace(conversion, report=report))
    with pytest.raises(UnsupportedError, match="run on this GPU only"):
        converter.save(str(tmp_path / "out"), save_gpu_specific_engines=False)


def test_the_summary_names_engines_their_ops_and_the_share(
    converter: trt.TrtGraphConverterV2, function: object
) -> None:
    text = summary_of(converter)
    assert "tensorrt_rtx fp32, onnxruntime fp32" in text
    assert "[float32, float32]" in text
    assert "    - MatMul: 1x" in text
    assert "[*] Total number of TensorRT engines: 1" in text
    assert f"[*] % of OPs Converted: 100.00% [{converter.report.ops_total}/{converter.report.ops_total}]" in text
    brief: list[str] = []
    converter.summary(line_length=200, detailed=False, print_fn=brief.append)
    assert "MatMul" not in "".join(brief)
    assert "=" * 200 in brief
    with pytest.raises(ValueError, match="too short"):
        converter.summary(line_length=100)


def test_calls_in_the_wrong_order_are_refused(converter: trt.TrtGraphConverterV2, function: object) -> None:
    fresh = trt.TrtGraphConverterV2("model")
    for call in (lambda: fresh.build(lambda: iter([])), lambda: fresh.save("out"), fresh.summary, lambda: fresh.report):
        with pytest.raises(RuntimeError, match="convert"):
            call()
    with pytest.raises(ValueError, match="nothing is calibrated"):
        fresh.convert(calibration_input_fn=lambda: iter([]))
    with tf.Graph().as_default(), pytest.raises(UnsupportedError, match="eager execution"):
        fresh.convert()
    with pytest.raises(OrderError, match="no input_fn"):
        converter.build(None)
    with pytest.raises(OrderError, match="already"):
        converter.convert()


def test_a_function_outlives_its_converter(tmp_path: Path) -> None:
    """Plans are read at the first call, from the converter's temporary folder."""
    converter = trt.TrtGraphConverterV2(saved(models.two_inputs(), tmp_path))
    function = converter.convert()
    folder = converter._conversion.folder if converter._conversion else Path()
    del converter
    gc.collect()
    engine_op.reset_stats()
    assert_equals(models.two_inputs(), function)
    assert engine_op.stats() == {"region_0": {"engine_calls": 1, "fallbacks": {}}}
    del function
    gc.collect()
    assert not folder.exists()


def test_no_segment_at_all_leaves_the_model_to_tensorflow(tmp_path: Path) -> None:
    converter = trt.TrtGraphConverterV2(saved(models.two_inputs(), tmp_path), minimum_segment_size=-1)
    assert_equals(models.two_inputs(), converter.convert())
    text = summary_of(converter)
    assert "engines: 0" in text
    assert "user's choice" in text


# -- the complaints of TF-TRT's users


@pytest.mark.slow
def test_a_shape_op_as_output_and_open_axes_until_build_has_seen_inputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    example = models.shape_output()
    converter = trt.TrtGraphConverterV2(
        saved(example, tmp_path), use_dynamic_shape=True, dynamic_shape_profile_strategy="Range+Optimal"
    )
    with caplog.at_level(logging.WARNING):
        assert_equals(example, converter.convert())
    assert "no engines yet" in caplog.text
    assert "No engines yet" in summary_of(converter)
    with pytest.raises(OrderError, match="call build"):
        converter.save(str(tmp_path / "early"))

    def inputs() -> Iterator[object]:
        yield example.inputs
        yield [np.ones((4, 7, 4))]

    function = converter.build(inputs)
    engine_op.reset_stats()
    assert_equals(example, function)
    assert all(not region["fallbacks"] for region in engine_op.stats().values())
    assert any(t.dtype == "int32" for r in converter.report.regions for t in r.outputs), "no Shape at the boundary"
    with pytest.raises(NotImplementedError):
        converter.build(inputs)
    converter.save(str(tmp_path / "out"))
    sizes = [(profile[0][1], profile[0][3]) for profile in profiles_of(tmp_path / "out")]
    assert sizes == [([2, 3, 4], [2, 3, 4]), ([4, 7, 4], [4, 7, 4]), ([2, 3, 4], [4, 7, 4])]


def test_an_axis_of_size_zero_does_not_end_the_conversion(tmp_path: Path) -> None:
    converter = trt.TrtGraphConverterV2(saved(vision.zero_size(), tmp_path))
    assert_equals(vision.zero_size(), converter.convert())


def test_thirty_tiny_islands_make_no_engines_and_the_summary_says_why(tmp_path: Path) -> None:
    converter = trt.TrtGraphConverterV2(saved(models.islands(), tmp_path))
    assert_equals(models.islands(), converter.convert())
    text = summary_of(converter)
    assert "[*] Total number of TensorRT engines: 0" in text
    assert f"{models.ISLANDS} × Sigmoid" in text
    assert "too small" in text
    assert f"{models.ISLANDS} × Lgamma" in text
    assert "unsupported by tf2onnx" in text


@pytest.mark.slow
def test_a_crash_of_the_library_costs_a_region_and_not_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("stages.screen", "stages.translate"):  # what keeps this op away from the parser
        monkeypatch.setattr(f"{module}.UNSAFE", {op: why for op, why in UNSAFE.items() if op != "CropAndResize"})
    example = models.crops()
    converter = trt.TrtGraphConverterV2(saved(example, tmp_path))
    assert_equals(example, converter.convert())
    (left,) = (op for op in converter.report.left_in_tensorflow if op.op == "CropAndResize")
    assert "signal 11" in left.detail
    assert len(converter.report.regions) == 2
    assert "signal 11" in summary_of(converter)


def test_loading_without_the_op_fails_with_words_that_the_documentation_explains(
    converter: trt.TrtGraphConverterV2, function: object, tmp_path: Path
) -> None:
    converter.save(str(tmp_path / "out"))
    program = """if True:
        import sys
        import tensorflow as tf
        try:
            tf.saved_model.load(sys.argv[1])
        except Exception as error:
            print(error)
        from pipeline import tftrt  # the import in place of TF-TRT's is enough
        tf.saved_model.load(sys.argv[1])
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    words = "Op type not registered 'EngineCall'"
    assert words in done.stdout
    explanation = (ROOT / "docs/troubleshooting.md").read_text().partition(words)[2][:200]
    assert "import stages.engine_op" in explanation


# -- the page


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a SavedModel in saved_model/", "a frozen graph in frozen.pb"])
def test_the_code_of_the_page_runs(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vision.small_cnn().export("saved_model", verbose=False)
    (tmp_path / "frozen.pb").write_bytes(models.frozen_graph().SerializeToString())
    (code,) = (match["code"] for match in RUNNABLE.finditer(PAGE) if match["where"] == f": beside {where}")
    namespace: dict[str, object] = {"__name__": "page"}
    exec(compile(code, "docs/migrating-from-tf-trt.md", "exec"), namespace)
    if "converter" in namespace:
        converter = namespace["converter"]
        assert isinstance(converter, trt.TrtGraphConverterV2)
        assert {engine.precision for region in converter.report.regions for engine in region.engines} == {"fp16"}
        sizes = [(p[0][1][0], p[0][3][0]) for p in profiles_of(tmp_path / "converted")]
        assert sizes == [(1, 1), (1, 8)]
