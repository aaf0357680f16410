"""INT8 by TF-TRT's calls: graphs that collect while they run, and what is made of them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from fixtures import quantised
from fixtures import tftrt as models
from fixtures.example import Weights
from pipeline import tftrt as trt
from pipeline.tftrt import params
from stages import engine_op
from stages.errors import ArgumentError, CalibrationError, OrderError, SplitError
from tests.conftest import relative_error
from tests.test_architecture import ROOT

INT8 = 0.1
FETCHES = ("probs:0", "halves:0", "halves:1")


@pytest.fixture(autouse=True)
def all_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights are no model to spare parts of."""
    original = params.config
    monkeypatch.setattr(params, "config", lambda given: replace(original(given), int8_error=1.0))


def images(count: int) -> list[np.ndarray]:
    return np.split(models.frozen_graph_inputs(4 * count), count)


def run(
    graph_def: tf.compat.v1.GraphDef, inputs: Sequence[np.ndarray], fetches: Sequence[str] = FETCHES
) -> list[list[np.ndarray]]:
    """What a TensorFlow 1 session fetches, for each input."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        return [session.run(list(fetches), {"input:0": image}) for image in inputs]


def precisions(graph_def: tf.compat.v1.GraphDef) -> set[str]:
    """Those of the plans in a graph."""
    functions = (node for function in graph_def.library.function for node in function.node_def)
    calls = [node for node in (*graph_def.node, *functions) if node.op == "EngineCall"]
    return {plan["precision"] for call in calls for plan in json.loads(call.attr["interface"].s)["plans"]}


def calibration_graph(**settings: object) -> tf.compat.v1.GraphDef:
    outputs = ["probs", "halves"]
    return trt.create_inference_graph(
        models.frozen_graph(),
        outputs,
        max_batch_size=8,
        precision_mode="INT8",
        **settings,  # type: ignore[arg-type]
    )


def test_the_graph_of_2018_collects_while_it_runs_and_is_finished() -> None:
    graph_def = calibration_graph()
    assert not precisions(graph_def)
    assert len(graph_def.SerializeToString()) < 2 * len(models.frozen_graph().SerializeToString()), "it holds no plans"
    with pytest.raises(OrderError, match="not run yet"):
        trt.calib_graph_to_infer_graph(graph_def)

    expected = run(models.frozen_graph(), images(3))
    for one, other in zip(expected, run(graph_def, images(3)), strict=True):
        assert all(map(np.array_equal, one, other)), "it runs TensorFlow's own ops"
    run(graph_def, images(1), ["probs:0"])  # a part of what can be fetched, in another session

    deployed = trt.calib_graph_to_infer_graph(graph_def)
    assert precisions(deployed) == {"int8"}
    engine_op.reset_stats()
    (result,) = run(deployed, images(3)[:1])
    assert [entry["fallbacks"] for entry in engine_op.stats().values()] == [{}]
    errors = [relative_error(e, a) for e, a in zip(expected[0], result, strict=True)]
    assert 1e-5 < max(errors) <= INT8, "computed in 8 bits, and near"

    with pytest.raises(OrderError, match="finished already"):
        trt.calib_graph_to_infer_graph(graph_def)


def test_several_sessions_run_it_at_once() -> None:
    graph_def = calibration_graph()
    threads = [threading.Thread(target=run, args=(graph_def, images(3))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert precisions(trt.calib_graph_to_infer_graph(graph_def)) == {"int8"}


def test_inputs_with_nan_are_refused_and_not_collected() -> None:
    graph_def = calibration_graph()
    with pytest.raises(tf.errors.OpError, match="contains NaN"):
        run(graph_def, [images(1)[0] * np.float32(np.nan)])
    with pytest.raises(OrderError, match="not run yet"):
        trt.calib_graph_to_infer_graph(graph_def)
    run(graph_def, images(1))
    assert precisions(trt.calib_graph_to_infer_graph(graph_def)) == {"int8"}


def test_a_graph_that_does_not_collect_can_not_be_finished() -> None:
    with pytest.raises(ArgumentError, match="no calibration graph"):
        trt.calib_graph_to_infer_graph(models.frozen_graph())


def test_another_process_says_that_it_has_collected_nothing(tmp_path: Path) -> None:
    graph_def = calibration_graph()
    run(graph_def, images(1))
    (tmp_path / "graph.pb").write_bytes(graph_def.SerializeToString())
    program = f"""
import numpy as np, tensorflow as tf
from pipeline import tftrt as trt
from pipeline.tftrt import params
graph_def = tf.compat.v1.GraphDef.FromString(open({str(tmp_path / "graph.pb")!r}, "rb").read())
try:
    trt.calib_graph_to_infer_graph(graph_def)
except RuntimeError as error:
    print(error)
with tf.Graph().as_default():  # TensorFlow would take the first function that this process made for the graph's
    unrelated = tf.numpy_function(lambda *arrays: None, [tf.zeros([])], [])
    tf.graph_util.import_graph_def(graph_def, name="")
    with tf.compat.v1.Session() as session:
        session.run("probs:0", {{"input:0": np.zeros([1, 16, 16, 3])}})
print("unreachable")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "unreachable" not in done.stdout
    assert done.returncode
    assert "made by another process" in done.stdout


def test_regions_inside_a_branch_collect_too() -> None:
    """The region lies in a function of the graph. What the branch that no run took would need is not known."""
    kernel = tf.constant(Weights(21).array(3, 3, 3, 8))

    @tf.function(input_signature=[tf.TensorSpec([None, 16, 16, 3], tf.float32, "input")])
    def serve(image: tf.Tensor) -> tf.Tensor:
        return tf.cond(
            tf.strings.length(tf.strings.as_string(tf.reduce_sum(image))) > 0,
            lambda: tf.nn.relu(
                tf.nn.conv2d(tf.nn.relu(tf.nn.conv2d(image, kernel, 1, "SAME"))[..., :3], kernel, 1, "SAME")
            ),
            lambda: tf.math.lgamma(tf.nn.conv2d(image, kernel, 1, "SAME")),
        )

    frozen = convert_variables_to_constants_v2(serve.get_concrete_function(), lower_control_flow=False)
    graph_def, name = frozen.graph.as_graph_def(), frozen.outputs[0].name
    fetched = frozen.outputs[0].op.name
    collecting = trt.create_inference_graph(graph_def, [fetched], max_batch_size=8, precision_mode="INT8")
    inside = [f.signature.name for f in collecting.library.function if any(n.op == "PyFunc" for n in f.node_def)]
    assert inside
    expected = run(graph_def, images(2), [name])
    for one, other in zip(expected, run(collecting, images(2), [f"{fetched}:0"]), strict=True):
        assert np.array_equal(one[0], other[0])
    deployed = trt.calib_graph_to_infer_graph(collecting)
    assert "int8" in precisions(deployed)
    (result,) = run(deployed, images(2)[:1], [f"{fetched}:0"])
    assert 1e-5 < relative_error(expected[0][0], result[0]) <= INT8


# -- the converters


def test_calibrate_runs_the_graph_and_returns_the_one_to_deploy(tmp_path: Path) -> None:
    converter = trt.TrtGraphConverter(
        input_graph_def=models.frozen_graph(), nodes_denylist=["probs"], precision_mode="INT8", max_batch_size=4
    )
    feeds = iter(images(3))
    with pytest.raises(OrderError, match="before convert"):
        converter.calibrate(["probs:0"], 1, lambda: {})
    assert not precisions(converter.convert())
    with pytest.raises(OrderError, match=r"save\(\) before calibrate\(\)"):
        converter.save(str(tmp_path / "early"))
    for functions in ({}, {"feed_dict_fn": dict, "input_map_fn": dict}):
        with pytest.raises(ArgumentError, match="one of feed_dict_fn and input_map_fn"):
            converter.calibrate(["probs:0"], 1, **functions)  # type: ignore[arg-type]
    deployed = converter.calibrate(["probs:0"], 3, lambda: {"input:0": next(feeds)})
    assert next(feeds, None) is None, "as many runs as asked for"
    assert precisions(deployed) == {"int8"}
    assert converter.report.precision == "int8"


def test_calibrate_reads_tensors_in_place_of_the_inputs() -> None:
    converter = trt.TrtGraphConverter(
        input_graph_def=models.frozen_graph(), nodes_denylist=["probs"], precision_mode="INT8", max_batch_size=4
    )
    converter.convert()
    deployed = converter.calibrate(["probs"], 2, input_map_fn=lambda: {"input:0": tf.constant(images(1)[0])})
    assert precisions(deployed) == {"int8"}


def test_the_converter_calibrates_on_what_its_function_yields(tmp_path: Path) -> None:
    example = quantised.loud()
    model = str(example.save(tmp_path / "model"))
    passed = 0

    def inputs() -> Iterator[Mapping[str, np.ndarray]]:
        nonlocal passed
        for factor in (0.5, 1.0, 0.75):
            passed += 1
            yield {"x": example.inputs["x"] * np.float32(factor)}

    converter = trt.TrtGraphConverterV2(model, precision_mode="INT8")
    function = converter.convert(inputs)
    assert passed == 3, "each input is asked for once"
    assert {engine.precision for region in converter.report.regions for engine in region.engines} == {"int8"}
    (expected,) = example.run().values()
    assert 1e-5 < relative_error(expected, function(tf.constant(example.inputs["x"]))["result"].numpy()) <= INT8

    rebuilt = converter.build(lambda: iter([example.inputs["x"]]))  # with the same ranges
    assert {engine.precision for region in converter.report.regions for engine in region.engines} == {"int8"}
    assert relative_error(expected, rebuilt(tf.constant(example.inputs["x"]))["result"].numpy()) <= INT8


@pytest.mark.parametrize(
    ("yielded", "error", "message"),
    [
        ([], ArgumentError, "yields nothing"),
        ([{"y": np.zeros((4, 16), np.float32)}], ArgumentError, "yields y"),
        ([np.zeros((4, 15), np.float32)], SplitError, "shape"),
        (["text"], ArgumentError, "no tensor"),
        ([np.full((4, 16), np.nan, np.float32)], SplitError, "NaN"),
    ],
)
def test_inputs_that_the_model_does_not_take_are_refused(
    yielded: list[object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    model = str(quantised.loud().save(tmp_path / "model"))
    with pytest.raises(error, match=message):
        trt.TrtGraphConverterV2(model, precision_mode="INT8").convert(lambda: iter(yielded))


def test_int8_without_anything_to_take_ranges_from_is_refused(tmp_path: Path) -> None:
    model = str(quantised.loud().save(tmp_path / "model"))
    with pytest.raises(ArgumentError, match="needs a calibration_input_fn"):
        trt.TrtGraphConverterV2(model, precision_mode="INT8").convert()
    with pytest.raises(ArgumentError, match="nothing is calibrated"):
        trt.TrtGraphConverterV2(model, precision_mode="INT8", use_calibration=False).convert(lambda: iter([]))
    with pytest.raises(CalibrationError, match="int8 needs samples"):
        trt.TrtGraphConverterV2(model, precision_mode="INT8", use_calibration=False).convert()


def test_without_calibration_the_graph_states_its_ranges(tmp_path: Path) -> None:
    example = quantised.fake_quantised()
    converter = trt.TrtGraphConverterV2(
        str(example.save(tmp_path / "model")), precision_mode="INT8", use_calibration=False
    )
    converter.convert()
    assert {engine.precision for region in converter.report.regions for engine in region.engines} == {"int8"}
