"""Whole conversions against pure TensorFlow: what is in engines, and that the answers are TensorFlow's."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import cuts, stateful, text, vision
from fixtures.example import Example
from stages import engine_op
from tests.conftest import Converted, relative_error

Convert = Callable[..., Converted]

FP32 = 1e-5


def samples_file(example: Example, folder: Path) -> Path:
    path = folder / "samples.npz"
    np.savez(
        path, **{name: value.astype(str) if value.dtype == object else value for name, value in example.inputs.items()}
    )
    return path


def assert_equals_tensorflow(example: Example, result: Converted, tolerance: float = FP32) -> None:
    """Compare with the live module, which GraftRT never saw, and see that engines did the work."""
    engine_op.reset_stats()
    expected, actual = example.run(), result.run(example.inputs)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        assert actual[name].shape == value.shape
        if value.dtype.kind == "f" and value.size:
            assert relative_error(value, actual[name]) <= tolerance, name
        else:
            assert np.array_equal(value, actual[name]), name
    stats = engine_op.stats()
    assert set(stats) == {region.name for region in result.report.regions}
    assert all(region["engine_calls"] > 0 and not region["fallbacks"] for region in stats.values())


def test_detector_runs_around_its_nms_in_two_regions(converted: Convert) -> None:
    example = vision.detector()
    result = converted(example)
    assert result.left["NonMaxSuppressionV3"] == "refused by TensorRT"
    assert set(result.left) <= {"NonMaxSuppressionV3", "GatherV2", "Identity"}
    assert len(result.report.regions) == 2
    assert any(op.endswith("Conv2D") for op in result.in_engines)
    assert_equals_tensorflow(example, result)


def test_strings_and_a_hash_table_stay_in_tensorflow_before_a_dense_body(converted: Convert, tmp_path: Path) -> None:
    example = stateful.table_front_end()
    result = converted(example, samples=samples_file(example, tmp_path))
    assert {"StringLower", "LookupTableFindV2"} <= set(result.left)
    assert any(op.endswith("MatMul") for op in result.in_engines)
    shutil.rmtree(tmp_path / "model")
    assert_equals_tensorflow(example, result)


def test_diamond_around_an_unsupported_op_becomes_two_regions(converted: Convert) -> None:
    example = cuts.diamond()
    result = converted(example, min_region=2)
    assert result.left == {"BesselI1e": "unsupported by tf2onnx"}
    assert len(result.report.regions) == 2
    assert_equals_tensorflow(example, result)


def test_one_region_with_several_outputs(converted: Convert) -> None:
    example = cuts.two_outputs()
    result = converted(example)
    assert result.left == {}
    assert [len(region.outputs) for region in result.report.regions] == [3]
    assert_equals_tensorflow(example, result)


def test_int64_and_bool_tensors_cross_the_boundary(converted: Convert) -> None:
    example = cuts.integer_boundary()
    result = converted(example)
    assert set(result.left) == {"BitwiseAnd", "AsString", "StaticRegexFullMatch"}
    crossing = {tensor.dtype for region in result.report.regions for tensor in (*region.inputs, *region.outputs)}
    assert {"int64", "bool", "float32"} <= crossing
    assert_equals_tensorflow(example, result)


def test_a_control_dependency_across_a_region_is_kept(converted: Convert) -> None:
    example = stateful.control_dependency()
    result = converted(example, min_region=1)
    assert {"AssignAddVariableOp", "ReadVariableOp"} <= set(result.left)
    assert any(op.endswith("MatMul_1") for op in result.in_engines)
    assert_equals_tensorflow(example, result)


def test_the_other_signature_of_a_model_answers_as_before(converted: Convert) -> None:
    example = stateful.two_signatures()
    result = converted(example, min_region=1)
    loaded = tf.saved_model.load(str(result.out / "saved_model"))
    assert set(loaded.signatures) == set(example.signatures)
    assert_equals_tensorflow(example, result)


def test_a_batch_normalisation_with_unread_outputs_of_unknown_rank_is_in_an_engine(converted: Convert) -> None:
    class Normal(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 6, 6, 4], tf.float32, "x")])
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            ones = tf.constant([1.0, 2.0, 0.5, 1.5])
            normal, *_ = tf.compat.v1.nn.fused_batch_norm(tf.nn.relu(x), ones, ones, ones, ones, is_training=False)
            return {"y": tf.tanh(normal)}

    example = Example(
        Normal(), {"x": np.random.default_rng(0).random((3, 6, 6, 4), np.float32)}, {"serving_default": "serve"}
    )
    result = converted(example)
    assert result.left == {}
    assert any("FusedBatchNorm" in op for op in result.in_engines)
    assert_equals_tensorflow(example, result)


def test_an_encoder_with_exact_gelu_is_one_region(converted: Convert) -> None:
    model = text.encoder_block()
    result = converted(model)
    assert result.left == {}
    assert len(result.report.regions) == 1
    for batch in (1, 3):
        inputs = text.encoder_block_inputs(batch)
        (expected,) = [model(*inputs.values()).numpy()]
        (actual,) = result.run(inputs).values()
        assert relative_error(expected, actual) <= FP32


def test_a_text_classifier_with_a_vocabulary_keeps_its_table(converted: Convert, tmp_path: Path) -> None:
    model, inputs = text.text_classifier(), text.text_classifier_inputs()
    path = tmp_path / "samples.npz"
    np.savez(path, **{name: value.astype(str) for name, value in inputs.items()})
    result = converted(model, samples=path)
    assert "LookupTableFindV2" in result.left
    assert any("dense" in op and op.endswith("MatMul") for op in result.in_engines)
    expected = model(tf.constant(next(iter(inputs.values())))).numpy()
    (actual,) = result.run(inputs).values()
    assert relative_error(expected, actual) <= FP32


def test_large_weights_are_variables_and_the_result_needs_neither_source_nor_place(
    converted: Convert, tmp_path: Path
) -> None:
    model, inputs = text.wide_dense(), text.wide_dense_inputs()
    result = converted(model, min_region=1)
    assert (result.out / "saved_model/saved_model.pb").stat().st_size < 1 << 20
    elsewhere = tmp_path / "elsewhere/moved"
    elsewhere.parent.mkdir()
    shutil.move(result.out, elsewhere)
    np.savez(tmp_path / "inputs.npz", **inputs)
    program = """
import json, sys
import numpy as np, tensorflow as tf
import stages.engine_op as engine_op
function = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
outputs = function(**{k: tf.constant(v) for k, v in np.load(sys.argv[2]).items()})
np.savez(sys.argv[3], **{k: v.numpy() for k, v in outputs.items()})
print(json.dumps(engine_op.stats()))
"""
    command = [
        sys.executable,
        "-c",
        program,
        str(elsewhere / "saved_model"),
        *(str(tmp_path / f"{n}.npz") for n in ("inputs", "outputs")),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, cwd=Path(__file__).parent.parent
    )
    assert '"engine_calls": 1' in done.stdout
    (expected,) = [model(*inputs.values()).numpy()]
    (actual,) = np.load(tmp_path / "outputs.npz").values()
    assert relative_error(expected, actual) <= FP32


def test_a_tf1_session_serves_the_result(converted: Convert) -> None:
    model = vision.small_cnn()
    result = converted(model)
    inputs = vision.small_cnn_inputs(3)
    engine_op.reset_stats()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(result.out / "saved_model"))
        signature = meta.signature_def["serving_default"]
        feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
        (actual,) = session.run([output.name for output in signature.outputs.values()], feeds)
    assert relative_error(model(*inputs.values()).numpy(), actual) <= FP32
    assert engine_op.stats()["region_0"] == {"engine_calls": 1, "fallbacks": {}}


def test_an_op_that_the_user_keeps_stays_and_says_so(converted: Convert) -> None:
    result = converted(vision.small_cnn(), keep_in_tf=("MaxPool",), min_region=1)
    kept = [op for op in result.report.left_in_tensorflow if op.op == "MaxPool"]
    assert kept
    assert all(op.reason.value == "user's choice" for op in kept)
    assert len(result.report.regions) == len(kept) + 1


def test_half_precision_is_within_its_tolerance_and_named(converted: Convert) -> None:
    model = vision.small_cnn()
    result = converted(model, precision="fp16")
    engines = {engine.backend: engine for engine in result.report.regions[0].engines}
    assert {engine.precision for engine in engines.values()} == {"fp16"}
    inputs = vision.small_cnn_inputs(3)
    (actual,) = result.run(inputs).values()
    error = relative_error(model(*inputs.values()).numpy(), actual)
    assert 0 < error <= 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2@96", "EfficientNetB0@96"])
def test_a_real_architecture_is_one_region_with_a_tensorrt_plan(converted: Convert, name: str) -> None:
    result = converted(f"keras:{name}")
    report = result.report
    assert len(report.regions) == 1
    assert report.ops_in_engines >= 0.99 * report.ops_total
    engines = {engine.backend: engine for engine in report.regions[0].engines}
    assert set(engines) >= {"onnxruntime"}
    assert any(backend.startswith("tensorrt") and engine.bytes > 1 << 20 for backend, engine in engines.items())
    from stages.sources import open_model

    model = open_model(f"keras:{name}").owner
    shape = model.input_shape[1:]
    for batch in (1, 3):
        image = np.random.default_rng(batch).random((batch, *shape), np.float32)
        (actual,) = result.run({"image": image}).values()
        assert relative_error(model(image).numpy(), actual) <= FP32
