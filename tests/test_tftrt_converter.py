"""TF-TRT's converter for SavedModels, and what its users complained about."""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import tftrt as models
from fixtures import vision
from fixtures.example import Example
from pipeline import tftrt as trt
from stages import engine_op
from stages.errors import ArtifactError, OrderError, UnsupportedError
from stages.translate.expand import RULES
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
    assert "has no engines yet" in caplog.text
    assert "No engines yet, build(input_fn) makes them: axes besides the first are open" in summary_of(converter)
    with pytest.raises(OrderError, match=r"(?s)axes besides the first are open.*call build"):
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


def test_where_random_inputs_do_not_suit_the_model_build_brings_real_ones(tmp_path: Path) -> None:
    example = models.demanding()
    converter = trt.TrtGraphConverterV2(saved(example, tmp_path))
    assert_equals(example, converter.convert())
    assert "random inputs do not suit it" in summary_of(converter)
    function = converter.build(lambda: iter([example.inputs]))
    engine_op.reset_stats()
    assert_equals(example, function)
    assert engine_op.stats() == {"region_0": {"engine_calls": 1, "fallbacks": {}}}


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
    monkeypatch.delitem(RULES, "CropAndResize")  # tf2onnx's own translation kills the parser
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
@pytest.mark.parametrize("block", [match["code"] for match in RUNNABLE.finditer(PAGE)])
def test_the_code_of_the_page_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vision.small_cnn().export("saved_model", verbose=False)
    (tmp_path / "frozen.pb").write_bytes(models.frozen_graph().SerializeToString())
    namespace: dict[str, object] = {"__name__": "page"}
    exec(compile(block, "docs/migrating-from-tf-trt.md", "exec"), namespace)
    if "INT8" not in block and "converter" in namespace:
        converter = namespace["converter"]
        assert isinstance(converter, trt.TrtGraphConverterV2)
        assert {engine.precision for region in converter.report.regions for engine in region.engines} == {"fp16"}
        sizes = [(p[0][1][0], p[0][3][0]) for p in profiles_of(tmp_path / "converted")]
        assert sizes == [(1, 1), (1, 8)]
