"""TensorFlow 1 checkpoints: they open with what they need, train no more, and say what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import tf1
from pipeline.cli import main
from stages.artifacts import FrozenGraph
from stages.errors import FreezeError
from stages.freeze import freeze
from tests.conftest import Converted, relative_error
from tests.test_freeze import run_frozen
from tests.test_sources import refuse

v1 = tf.compat.v1
INFERENCE = {"is_training": False, "keep_prob": 1.0}


def ops(frozen: FrozenGraph) -> set[str]:
    return {node.op for node in frozen.graph_def().node}


@pytest.fixture(scope="module", params=["references", "resources"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A checkpoint's folder, with either kind of variables, and what it answers."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    want = tf1.checkpoint(folder, resources=request.param == "resources")
    return folder, want["y"]


def test_with_is_training_fixed_the_training_side_is_gone(trained: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, want = trained
    frozen = freeze(folder / "model-7.meta", tmp_path / "frozen", outputs=["y"], constants=INFERENCE)
    assert frozen.input_names == ("x",)
    assert frozen.captures == ()
    assert not ops(frozen) & {"Switch", "Merge", "RandomUniform", "AssignSubVariableOp", "FusedBatchNormGradV3"}
    np.testing.assert_allclose(run_frozen(frozen, tf1.normalized_inputs())["y"], want, rtol=1e-5)


def test_left_open_is_training_and_keep_prob_are_inputs(trained: tuple[Path, np.ndarray], tmp_path: Path) -> None:
    folder, want = trained
    frozen = freeze(folder / "model-7.meta", tmp_path / "frozen", outputs=["y:0"])
    assert frozen.input_names == ("is_training", "keep_prob", "x")
    assert "Switch" in ops(frozen)
    fed = {"is_training": np.array(False), "keep_prob": np.array(1.0, np.float32), **tf1.normalized_inputs()}
    np.testing.assert_allclose(run_frozen(frozen, fed)["y"], want, rtol=1e-5)


def test_a_checkpoint_converts_with_all_of_its_ops_in_one_engine(
    trained: tuple[Path, np.ndarray], converted: Callable[..., Converted], tmp_path: Path
) -> None:
    folder, want = trained
    made = converted(
        folder, outputs=("y",), constants={"is_training": "false", "keep_prob": "1"}, backend="onnxruntime"
    )
    assert made.left == {}
    assert len(made.report.regions) == 1
    assert relative_error(want, made.run(tf1.normalized_inputs())["y"]) < 1e-5


def test_a_model_with_is_training_as_an_input_converts_and_answers_both_ways(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    want = tf1.checkpoint(tmp_path / "model")["y"]
    made = converted(tmp_path / "model", outputs=("y",), backend="onnxruntime", min_region=1, samples=samples(tmp_path))
    fed = {"is_training": np.array(False), "keep_prob": np.array(1.0, np.float32), **tf1.normalized_inputs()}
    assert relative_error(want, made.run(fed)["y"]) < 1e-5
    assert "Conv2D" not in made.left
    fed["is_training"] = np.array(True)
    assert relative_error(want, made.run(fed)["y"]) > 1e-3


def samples(folder: Path) -> Path:
    """Real inputs, for inference."""
    fed = {"is_training": np.array(False), "keep_prob": np.array(1.0, np.float32), **tf1.normalized_inputs()}
    np.savez(folder / "samples.npz", **fed)
    return folder / "samples.npz"


@pytest.mark.parametrize("given", ["", "model-7.meta", "model-7", "model-7.index", "model-7.data-00000-of-00001"])
def test_a_folder_a_prefix_or_any_file_of_it_stands_for_a_checkpoint(given: str, tmp_path: Path) -> None:
    tf1.checkpoint(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "moved")
    frozen = freeze(tmp_path / "moved" / given, tmp_path / "frozen", outputs=["y"], constants=INFERENCE)
    assert frozen.output_names == ("y",)


def test_the_latest_checkpoint_of_a_folder_is_taken(tmp_path: Path) -> None:
    with tf1.legacy() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        weight = v1.get_variable("weight", initializer=1.0)
        tf.multiply(x, weight, name="y")
        saver = v1.train.Saver()
        session.run(v1.global_variables_initializer())
        for step in (1, 2, 3):
            session.run(weight.assign(step))
            saver.save(session, str(tmp_path / "model"), global_step=step)
    for step, folder in ((3, tmp_path), (2, tmp_path / "model-2")):
        frozen = freeze(folder, tmp_path.parent / f"{tmp_path.name}-frozen-{step}")
        assert run_frozen(frozen, {"x": np.ones(2, np.float32)})["y"].tolist() == [step, step]


@pytest.mark.parametrize("version", [v1.train.SaverDef.V1, v1.train.SaverDef.V2], ids=["V1", "V2"])
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_both_formats_open_in_one_file_or_several(version: int, sharded: bool, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with tf1.legacy() as session:
        x = v1.placeholder(tf.float32, [None, 2], "x")
        tf.matmul(x, v1.get_variable("weight", initializer=np.float32([[1, 2], [3, 4]])), name="y")
        session.run(v1.global_variables_initializer())
        v1.train.Saver(sharded=sharded, write_version=version).save(session, str(tmp_path / "model" / "model"))
    for number, given in enumerate((tmp_path / "model", tmp_path / "model" / "model.meta")):
        frozen = freeze(given, tmp_path / str(number))
        assert run_frozen(frozen, {"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[4, 6]]


def test_old_and_odd_files_open(tmp_path: Path) -> None:
    """As TensorFlow 1.4 wrote them: wrong `_output_shapes`, devices and colocations, text, an op nobody knows."""
    want = tf1.checkpoint(tmp_path / "model")["y"]
    meta = v1.MetaGraphDef()
    file = tmp_path / "model" / "model-7.meta"
    meta.ParseFromString(file.read_bytes())
    for node in meta.graph_def.node:
        node.device = "/job:worker/task:3/device:GPU:7"
        node.attr["_class"].list.s.append(b"loc:@nowhere")
        node.attr["_output_shapes"].list.shape.add().dim.add().size = 77
        if node.name == "watched":
            node.op = "NobodysSummary"
    file.write_text(str(meta))
    frozen = freeze(file, tmp_path / "frozen", outputs=["y"], constants=INFERENCE)
    np.testing.assert_allclose(run_frozen(frozen, tf1.normalized_inputs())["y"], want, rtol=1e-5)


def test_the_output_is_guessed_beside_a_training_graph(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with tf1.legacy() as session:
        x, label = v1.placeholder(tf.float32, [None, 4], "x"), v1.placeholder(tf.float32, [None, 4], "label")
        weight = v1.get_variable("weight", [4, 4])
        logits = tf.matmul(x, weight, name="logits")
        tf.nn.softmax(logits, name="y")
        v1.train.AdamOptimizer().minimize(tf.reduce_sum(logits * label))
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model" / "model"))
    message = refuse(tmp_path / "model", tmp_path / "out")
    assert "can't be guessed" in message
    assert "y" in message
    assert "Adam" not in message
    with tf1.legacy() as session:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        tf.nn.softmax(x @ v1.get_variable("weight", [4, 4]), name="y")
        v1.get_variable("global_step", [], tf.int64, v1.zeros_initializer())
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "small"))
    assert freeze(tmp_path / "small", tmp_path / "frozen").output_names == ("y",)


def test_a_network_that_reads_a_queue_or_dataset_is_fed_behind_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with tf1.legacy() as session:
        rows = tf.data.Dataset.from_tensors((tf.ones([2, 4]), tf.ones([2]))).repeat()
        features, label = v1.data.make_one_shot_iterator(rows).get_next()
        y = tf.matmul(features, v1.get_variable("weight", initializer=np.eye(4, dtype=np.float32) * 3), name="y")
        tf.reduce_sum(tf.reduce_sum(y, 1) - label, name="loss")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model" / "model"))
    name = features.name.removesuffix(":0")
    frozen = freeze(tmp_path / "model", tmp_path / "frozen", inputs=[name], outputs=["y"])
    assert frozen.inputs[0].shape == (2, 4)
    result = run_frozen(frozen, {name: np.ones((2, 4), np.float32)})["y"]
    np.testing.assert_array_equal(result, np.full((2, 4), 3))
    frozen = freeze(tmp_path / "model", tmp_path / "second", inputs=[f"{name}:0", f"{name}:1"], outputs=["loss"])
    assert frozen.input_names == (name, f"{name}:1")


def test_what_a_saver_calls_otherwise_and_cuts_into_parts_is_restored(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with tf1.legacy() as session:
        x = v1.placeholder(tf.float32, [None, 6], "x")
        parts = v1.get_variable(
            "parts", [6, 4], initializer=v1.random_normal_initializer(), partitioner=v1.fixed_size_partitioner(3)
        )
        bias = v1.get_variable("bias", initializer=np.arange(4, dtype=np.float32))
        y = tf.add(tf.matmul(x, tf.convert_to_tensor(parts)), bias, name="y")
        session.run(v1.global_variables_initializer())
        v1.train.Saver({"weights": parts, "shift": bias}).save(session, str(tmp_path / "model" / "model"))
        rows = np.random.RandomState(0).rand(2, 6).astype(np.float32)
        want = session.run(y, {x: rows})
    frozen = freeze(tmp_path / "model", tmp_path / "frozen")
    np.testing.assert_allclose(run_frozen(frozen, {"x": rows})["y"], want, rtol=1e-6)


def test_a_frozen_graph_is_fed_behind_its_iterator_too(tmp_path: Path) -> None:
    with tf1.legacy():
        rows = tf.data.Dataset.from_tensors((tf.ones([2, 4]), tf.ones([2, 1]))).repeat()
        features, scale = v1.data.make_one_shot_iterator(rows).get_next()
        tf.multiply(tf.matmul(features, tf.eye(4)), scale, name="y")
        (tmp_path / "model.pb").write_bytes(v1.get_default_graph().as_graph_def().SerializeToString())
    name = features.op.name
    frozen = freeze(tmp_path / "model.pb", tmp_path / "frozen", inputs=[f"{name}:1", name])
    assert frozen.input_names == (f"{name}:1", name)
    fed = {name: np.full((2, 4), 3, np.float32), f"{name}:1": np.full((2, 1), 2, np.float32)}
    np.testing.assert_array_equal(run_frozen(frozen, fed)["y"], np.full((2, 4), 6))
    assert "can't be an input" in refuse(tmp_path / "model.pb", tmp_path / "out", inputs=[f"{name}:7"])


def test_a_default_that_nobody_feeds_decides_branches(tmp_path: Path) -> None:
    with tf1.legacy():
        x = v1.placeholder(tf.float32, [None, 4], "x")
        is_training = v1.placeholder_with_default(False, [], "is_training")
        tf.identity(v1.cond(is_training, lambda: v1.nn.dropout(x, 0.5), lambda: x * 2.0), "y")
        (tmp_path / "model.pb").write_bytes(v1.get_default_graph().as_graph_def().SerializeToString())
    frozen = freeze(tmp_path / "model.pb", tmp_path / "frozen")
    assert frozen.input_names == ("x",)
    assert not ops(frozen) & {"Switch", "Merge", "RandomUniform"}
    assert run_frozen(frozen, {"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[2, 2, 2, 2]]
    named = freeze(tmp_path / "model.pb", tmp_path / "named", inputs=["x", "is_training"])
    assert "Switch" in ops(named)
    fixed = freeze(tmp_path / "model.pb", tmp_path / "fixed", constants={"is_training": True})
    assert "RandomUniform" in ops(fixed)
    assert "Switch" not in ops(fixed)


def test_references_read_and_written_in_place_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with tf1.legacy() as session:
        x = v1.placeholder(tf.float32, [2], "x")
        total = v1.get_variable("total", initializer=np.zeros(2, np.float32), use_resource=False)
        rows = v1.get_variable("rows", initializer=np.zeros((3, 2), np.float32), use_resource=False)
        before = tf.identity(total, name="before")
        with tf.control_dependencies([before]):
            after = tf.identity(v1.assign_add(total, x), name="after")
            tf.identity(v1.scatter_add(rows, [1], [x]), name="scattered")
        switched = v1.cond(x[0] > 0, lambda: total * 2.0, lambda: -total)
        with tf.control_dependencies([after]):
            tf.identity(switched, name="switched")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, str(tmp_path / "model" / "model"))
    names = ["before", "after", "scattered"]
    frozen = freeze(tmp_path / "model", tmp_path / "frozen", outputs=names)
    assert len(frozen.captures) == 2
    got = run_frozen(frozen, {"x": np.array([1, 2], np.float32)})
    assert got["before"].tolist() == [0, 0]
    assert got["after"].tolist() == [1, 2]
    assert got["scattered"].tolist() == [[0, 0], [1, 2], [0, 0]]
    frozen = freeze(tmp_path / "model", tmp_path / "second", outputs=["switched"])
    assert run_frozen(frozen, {"x": np.array([-1, 2], np.float32)})["switched"].tolist() in ([0, 0], [1, -2])


def test_tables_of_a_checkpoint_are_filled(converted: Callable[..., Converted], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with tf1.legacy() as session:
        words = v1.placeholder(tf.string, [None], "words")
        pairs = tf.lookup.KeyValueTensorInitializer(["good", "bad"], tf.constant([1, 2], tf.int64))
        ids = tf.lookup.StaticHashTable(pairs, 0).lookup(words)
        vectors = v1.get_variable("vectors", initializer=np.arange(12, dtype=np.float32).reshape(3, 4))
        tf.nn.relu(tf.matmul(tf.gather(vectors, ids), tf.eye(4) * 2), name="y")
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        v1.train.Saver().save(session, str(tmp_path / "model" / "model"))
    np.savez(tmp_path / "samples.npz", words=np.array(["bad", "good", "?"]))
    made = converted(tmp_path / "model", backend="onnxruntime", samples=tmp_path / "samples.npz")
    shutil.rmtree(tmp_path / "model")
    assert "MatMul" not in made.left
    got = made.run({"words": np.array(["bad", "good", "?"], object)})["y"]
    np.testing.assert_array_equal(got, np.arange(12).reshape(3, 4)[[2, 1, 0]] * 2)


def test_missing_files_are_named(tmp_path: Path) -> None:
    tf1.checkpoint(tmp_path / "model")
    folder, out = tmp_path / "model", tmp_path / "out"
    data, index = folder / "model-7.data-00000-of-00001", folder / "model-7.index"
    content = data.read_bytes()
    data.unlink()
    assert ".index and .data files are missing" in refuse(folder / "model-7.meta", out)
    assert "model-7, is not there" in refuse(folder, out)
    data.write_bytes(content[: len(content) // 2])
    assert "can't be read" in refuse(folder / "model-7.meta", out, outputs=["y"])
    data.write_bytes(content)
    (folder / "model-7.meta").unlink()
    assert "model-7.meta is missing" in refuse(folder, out)
    assert "model-7.meta is missing" in refuse(index, out)
    (folder / "checkpoint").write_text("nonsense")
    assert "its file `checkpoint` can't be read" in refuse(folder, out)


def test_a_damaged_or_empty_meta_file_is_refused(tmp_path: Path) -> None:
    tf1.checkpoint(tmp_path / "model")
    file = tmp_path / "model" / "model-7.meta"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "is no MetaGraph, or is cut off" in refuse(file, tmp_path / "out")
    file.write_bytes(v1.MetaGraphDef().SerializeToString())
    assert "holds an empty graph" in refuse(file, tmp_path / "out")


def test_a_variable_that_is_not_in_the_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with tf1.legacy() as session:
        kept, forgotten = v1.get_variable("kept", [2]), v1.get_variable("forgotten", [2])
        tf.add(v1.placeholder(tf.float32, [2], "x") * kept, forgotten, name="y")
        session.run(v1.global_variables_initializer())
        v1.train.Saver([kept]).save(session, str(tmp_path / "model" / "model"))
    assert "variable forgotten has no value" in refuse(tmp_path / "model", tmp_path / "out")


def test_names_and_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tf1.checkpoint(tmp_path / "model")
    model, out = tmp_path / "model", tmp_path / "out"
    assert "has no tensor nope" in refuse(model, out, outputs=["nope"])
    assert "has no tensor nope" in refuse(model, out, outputs=["y"], constants={"nope": 1})
    assert "depend on keep_prob" in refuse(model, out, inputs=["x", "is_training"], outputs=["y"])
    assert "'maybe' is neither true nor false" in refuse(model, out, outputs=["y"], constants={"is_training": "maybe"})
    assert "'much' is no float32" in refuse(model, out, outputs=["y"], constants={"keep_prob": "much"})
    assert "is open, so no constant" in refuse(model, out, outputs=["y"], constants={"x": 1})
    assert "has no signatures" in refuse(model, out, outputs=["y"], signature="other")
    assert "has no tags" in refuse(model, out, outputs=["y"], tags=["serve"])


def test_an_output_of_the_training_side_is_refused(tmp_path: Path) -> None:
    tf1.checkpoint(tmp_path / "model")
    graph = v1.MetaGraphDef()
    graph.ParseFromString((tmp_path / "model" / "model-7.meta").read_bytes())
    dead = next(node.name for node in graph.graph_def.node if node.op == "FusedBatchNormV3" and "1" not in node.name)
    message = refuse(tmp_path / "model", tmp_path / "out", FreezeError, outputs=[dead], constants=INFERENCE)
    assert "is never computed" in message


def test_the_command_line_fixes_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tf1.checkpoint(tmp_path / "model")
    arguments = ["freeze", str(tmp_path / "model"), str(tmp_path / "out"), "--outputs", "y"]
    assert main([*arguments, "--constant", "is_training=false", "--constant", "keep_prob=1.0"]) == 0
    assert "inputs: x\n" in capsys.readouterr().out
    assert main([*arguments[:2], str(tmp_path / "second"), "--constant", "is_training"]) == 1
    assert "'is_training' can't be read" in capsys.readouterr().err
