"""GraphDef in, GraphDef out: engines inside, fetched under the old names in a TensorFlow 1 session of another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import tftrt as models
from pipeline import pretrained
from pipeline import tftrt as trt
from stages import engine_op, stitch
from stages.errors import ArgumentError, ConversionError, ModelError, OrderError
from tests.conftest import relative_error
from tests.test_architecture import ROOT

v1 = tf.compat.v1
FP32 = 1e-5

RUN = """if True:
    import json, sys
    import numpy as np
    import tensorflow.compat.v1 as tf
    tf.disable_v2_behavior()
    import stages.engine_op
    stages.engine_op.load()
    model, inputs, fetched = sys.argv[1], np.load(sys.argv[2]), json.loads(sys.argv[3])
    graph_def = tf.GraphDef()
    with open(model, "rb") as file:
        graph_def.ParseFromString(file.read())
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        for name in inputs.files:
            values = session.run(fetched, {"input:0": inputs[name]})
            np.savez(f"{model}.{name}.npz", *values)
    print(json.dumps(stages.engine_op.stats()))
"""


def python(program: str, *arguments: object) -> str:
    """Run a program in another process; returns the last line that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def run_here(graph_def: tf.compat.v1.GraphDef, fetched: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    with tf.Graph().as_default(), v1.Session() as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        return list(session.run(fetched, feeds))


def engine_calls(graph_def: tf.compat.v1.GraphDef) -> list[dict[str, object]]:
    return [json.loads(node.attr["interface"].s) for node in graph_def.node if node.op == "EngineCall"]


def batches(graph_def: tf.compat.v1.GraphDef) -> list[tuple[int, int]]:
    """Smallest and largest batch in each profile of the plan for GPUs."""
    (interface,) = engine_calls(graph_def)
    (plan,) = (plan for plan in interface["plans"] if plan["device"] == "gpu")  # type: ignore[attr-defined]
    return [(profile[0][1][0], profile[0][3][0]) for profile in plan["profiles"]]


@pytest.mark.slow
def test_a_program_of_tensorflow_1_converts_and_another_one_runs_it(tmp_path: Path) -> None:
    """The first has turned TensorFlow 2 off and is building a graph meanwhile."""
    source, model, data = tmp_path / "frozen.pb", tmp_path / "converted.pb", tmp_path / "inputs.npz"
    source.write_bytes(models.frozen_graph().SerializeToString())
    program = """if True:
        import sys
        import tensorflow.compat.v1 as tf
        tf.disable_v2_behavior()
        from pipeline import tftrt as trt
        graph_def = tf.GraphDef()
        with open(sys.argv[1], "rb") as file:
            graph_def.ParseFromString(file.read())
        with tf.Graph().as_default() as graph:
            before = tf.constant(1.0, name="mine")
            converted = trt.create_inference_graph(graph_def, ["probs", "halves"], max_batch_size=8)
            assert [op.name for op in graph.get_operations()] == ["mine"]
        assert not tf.executing_eagerly()
        with open(sys.argv[2], "wb") as file:
            file.write(converted.SerializeToString())
        print(sorted(node.name for node in converted.node if not node.name.startswith("graftrt/")))
    """
    assert python(program, source, model) == "['halves', 'input', 'probs']"
    inputs = {f"n{batch}": models.frozen_graph_inputs(batch) for batch in (1, 8, 20)}
    np.savez(data, **inputs)
    fetched = ["probs:0", "halves:1"]
    stats = json.loads(python(RUN, model, data, json.dumps(fetched)))
    assert stats == {"region_0": {"engine_calls": len(inputs), "fallbacks": {}}}
    for name, value in inputs.items():
        actual = np.load(f"{model}.{name}.npz")
        expected = run_here(models.frozen_graph(), fetched, {"input:0": value})
        for answer, right in zip(actual.values(), expected, strict=True):
            assert relative_error(right, answer) <= FP32


@pytest.mark.slow
def test_a_trained_frozen_graph_runs_in_another_process_under_its_names(tmp_path: Path) -> None:
    try:
        fetched = pretrained.fetch("mobilenet-pb")
    except ModelError as error:
        if "can't be downloaded" in str(error):
            pytest.skip(str(error))
        raise
    graph_def = v1.GraphDef()
    graph_def.ParseFromString(Path(fetched.path).read_bytes())
    output = fetched.entry.outputs[0]
    converted = trt.create_inference_graph(graph_def, [output])
    (tmp_path / "model.pb").write_bytes(converted.SerializeToString())
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", image=image)
    stats = json.loads(python(RUN, tmp_path / "model.pb", tmp_path / "inputs.npz", json.dumps([output])))
    assert all(region["engine_calls"] == 1 and not region["fallbacks"] for region in stats.values())
    (actual,) = np.load(f"{tmp_path}/model.pb.image.npz").values()
    assert relative_error(run_here(graph_def, [output], {"input:0": image})[0], actual) <= FP32


def test_the_largest_batch_is_the_profiles_maximum_and_each_cached_batch_has_a_profile() -> None:
    graph_def = models.frozen_graph()
    assert batches(trt.create_inference_graph(graph_def, ["probs"], max_batch_size=16)) == [(1, 16)]
    several = trt.create_inference_graph(graph_def, ["probs:0"], is_dynamic_op=True, cached_engine_batches=[8, 1, 4])
    assert batches(several) == [(1, 1), (1, 4), (1, 8)]
    dynamic = trt.create_inference_graph(graph_def, ["probs"], None, precision_mode="FP16", is_dynamic_op=True)
    assert batches(dynamic) == [(1, 32)]
    assert {plan["precision"] for call in engine_calls(dynamic) for plan in call["plans"]} == {"fp16"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("room", [-1, 1], ids=["at once", "once the plans are there"])
def test_above_the_limit_a_graph_def_is_refused_with_the_remedy(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitch, "EMBEDDED_LIMIT_BYTES", models.frozen_graph().ByteSize() + room)
    with pytest.raises(ConversionError, match=r"(?s)more than 1 GiB.*try: convert a SavedModel"):
        trt.create_inference_graph(models.frozen_graph(), ["probs"])


def test_a_saved_model_of_tensorflow_2_keeps_the_name_of_its_call(tmp_path: Path) -> None:
    """Its output is the result of a call (of functions that call functions), which is inlined."""
    example = models.two_inputs()
    source = str(example.save(tmp_path / "model"))
    converter = trt.TrtGraphConverter(input_saved_model_dir=source, max_batch_size=4)
    converted = converter.convert()
    assert len(engine_calls(converted)) == 1
    converter.save(str(tmp_path / "out"))

    def run(folder: str) -> np.ndarray:
        with tf.Graph().as_default(), v1.Session() as session:
            signature = v1.saved_model.loader.load(session, ["serve"], folder).signature_def["serving_default"]
            feeds = {signature.inputs[name].name: value for name, value in example.inputs.items()}
            value: np.ndarray = session.run(signature.outputs["y"].name, feeds)
            return value

    engine_op.reset_stats()
    expected, actual = run(source), run(str(tmp_path / "out"))
    assert relative_error(expected, actual) <= FP32
    assert engine_op.stats() == {"region_0": {"engine_calls": 1, "fallbacks": {}}}
    assert converter.report.ops_in_engines == converter.report.ops_total


def test_a_saved_model_of_tensorflow_1_keeps_its_names_and_what_is_denied(tmp_path: Path) -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        old = v1.get_variable("old", initializer=np.eye(4, dtype=np.float32) * 2, use_resource=False)
        new = v1.get_variable("new", initializer=np.ones((4, 4), np.float32), use_resource=True)
        hidden = tf.nn.relu(tf.matmul(x, old) - 0.5, name="hidden")
        y = tf.nn.softmax(tf.nn.relu(tf.matmul(tf.sigmoid(hidden), new)) * x, name="scope/probs")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"given": x}, {"answer": y})
        value = np.random.default_rng(0).random((3, 4), np.float32)
        expected = session.run([y, hidden], {x: value})
    converter = trt.TrtGraphConverter(str(tmp_path / "model"), nodes_denylist=["hidden"], minimum_segment_size=2)
    converted = converter.convert()
    kept = {node.name: node.op for node in converted.node}
    assert kept["hidden"] == "Relu"
    assert "EngineCall" in kept.values()
    for right, actual in zip(expected, run_here(converted, ["scope/probs:0", "hidden:0"], {"x:0": value}), strict=True):
        assert relative_error(right, actual) <= FP32
    with pytest.raises(OrderError):
        converter.convert()


def test_for_a_graph_def_the_denied_nodes_are_fetched_and_stay_in_tensorflow() -> None:
    converter = trt.TrtGraphConverter(input_graph_def=models.frozen_graph(), nodes_denylist=["input", "probs:0"])
    converted = converter.convert()
    kept = {node.name: node.op for node in converted.node}
    assert kept["probs"] == "Softmax"
    assert kept["input"] == "Placeholder"
    value = models.frozen_graph_inputs(1)
    (expected,) = run_here(models.frozen_graph(), ["probs:0"], {"input:0": value})
    assert relative_error(expected, run_here(converted, ["probs:0"], {"input:0": value})[0]) <= FP32
    with pytest.raises(ArgumentError, match="was a GraphDef"):
        converter.save("out")


def test_without_names_every_node_that_nobody_reads_is_fetched() -> None:
    converted = trt.TrtGraphConverter(input_graph_def=models.frozen_graph(), max_batch_size=2).convert()
    feeds, fetched = {"input:0": models.frozen_graph_inputs(2)}, ["probs:0", "aside:0"]
    expected, actual = (run_here(graph_def, fetched, feeds) for graph_def in (models.frozen_graph(), converted))
    assert all(relative_error(a, b) <= FP32 for a, b in zip(expected, actual, strict=True))
    assert len(engine_calls(converted)) == 1


def test_arguments_that_make_no_sense_are_refused_with_a_remedy(tmp_path: Path) -> None:
    graph_def = models.frozen_graph()
    with tf.Graph().as_default() as graph:
        v1.placeholder(tf.float32, [None, None, 3], "open")
        tf.identity(graph.get_tensor_by_name("open:0"), "result")
    calls = {
        "has no output": lambda: trt.create_inference_graph(graph_def, []),
        "has no node prob": lambda: trt.create_inference_graph(graph_def, ["prob"]),
        "open axes besides the first": lambda: trt.create_inference_graph(graph.as_graph_def(), ["result"]),
        "is no batch size": lambda: trt.create_inference_graph(graph_def, ["probs"], max_batch_size=None),
        "output_saved_model_dir": lambda: trt.create_inference_graph(
            graph_def, ["probs"], output_saved_model_dir="out"
        ),
        "give one of": lambda: trt.TrtGraphConverter("model", input_graph_def=graph_def),
        "leave the other out": lambda: trt.create_inference_graph(None, ["probs"]),
    }
    for words, call in calls.items():
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert isinstance(caught.value, ArgumentError)
        assert caught.value.remedy
    with pytest.raises(ModelError, match="does not exist"):
        trt.TrtGraphConverter(str(tmp_path)).convert()
    models.two_inputs().save(tmp_path / "model")
    with pytest.raises(ArgumentError, match=r"no signature wrong.*\n.*serving_default"):
        trt.TrtGraphConverter(str(tmp_path / "model"), input_saved_model_signature_key="wrong").convert()
    with pytest.raises(ModelError, match="--tags"):
        trt.TrtGraphConverter(str(tmp_path / "model"), ["gpu"]).convert()
