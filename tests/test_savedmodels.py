"""SavedModels of every kind come out with the same signatures, answers, tags and names, and without the input."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import tf1
from fixtures.example import Weights
from pipeline import Config, convert
from stages import signature_defs
from stages.artifacts import FrozenGraph
from stages.freeze import freeze
from tests.conftest import Converted
from tests.test_freeze import run_frozen, served
from tests.test_sources import refuse

v1 = tf.compat.v1
QUICK = {"backend": "onnxruntime", "min_region": 1}
TAGS = ("serve", "cpu")
Kernel = np.ndarray


def ops(frozen: FrozenGraph) -> list[str]:
    return [node.op for node in frozen.graph_def().node]


def call(folder: Path, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A signature's answers, of a model with any tags."""
    function = tf.saved_model.load(str(folder), tags=tags_of(folder)).signatures[signature]
    return {name: value.numpy() for name, value in function(**{k: tf.constant(v) for k, v in inputs.items()}).items()}


def tags_of(folder: Path) -> list[str]:
    return list(signature_defs.read(folder).meta_graphs[0].meta_info_def.tags)


def interface(folder: Path) -> dict[str, tuple[str, dict[str, str], dict[str, str]]]:
    """Method name, inputs and outputs (dtype and shape by name) of every signature."""
    signatures = signature_defs.read(folder).meta_graphs[0].signature_def
    return {
        name: (signature.method_name, tensors(signature.inputs), tensors(signature.outputs))
        for name, signature in signatures.items()
        if not name.startswith("__")
    }


def tensors(infos: Mapping[str, object]) -> dict[str, str]:
    return {
        name: f"{tf.as_dtype(info.dtype).name} {tf.TensorShape(info.tensor_shape)}"  # type: ignore[attr-defined]
        for name, info in infos.items()
    }


def without_the_input(made: Converted, *originals: Path) -> Path:
    """The stitched model, moved, and its input deleted."""
    for original in originals:
        shutil.rmtree(original)
    return (made.out / "saved_model").rename(made.out.with_name("served"))


# what TensorFlow 1 saved


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signature", "resources"), [("serving_default", False), ("count", True), ("count", False), ("echo", True)]
)
def test_a_tensorflow_1_model_keeps_every_signature_whichever_is_converted(
    signature: str, resources: bool, converted: Callable[..., Converted], tmp_path: Path
) -> None:
    want = tf1.saved_model(tmp_path / "model", resources=resources)
    before = interface(tmp_path / "model")
    made = converted(tmp_path / "model", signature=signature, tags=TAGS, **QUICK)
    folder = without_the_input(made, tmp_path / "model")
    assert interface(folder) == before
    assert sorted(tags_of(folder)) == sorted(TAGS)
    inputs = tf1.saved_model_inputs()
    got = call(folder, "serving_default", inputs)
    for name, value in want["serving_default"].items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    got = call(folder, "echo", {"x": inputs["x-in"], "unread": np.int32(0)})
    for name, value in want["echo"].items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)
    assert call(folder, "classify", {"words": inputs["words"]})["ids"].tolist() == [2, -1, 0]
    count = tf.saved_model.load(str(folder), tags=TAGS).signatures["count"]
    assert [int(count(x=tf.constant(inputs["x-in"]))["step"]) for _ in range(3)] == [1, 2, 3]


def test_a_tensorflow_1_model_is_served_by_a_session_under_its_own_names(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    want = tf1.saved_model(tmp_path / "model")["serving_default"]
    made = converted(tmp_path / "model", tags=TAGS, **QUICK)
    folder = without_the_input(made, tmp_path / "model")
    inputs = tf1.saved_model_inputs()
    with tf.Graph().as_default(), v1.Session() as session:
        signature = v1.saved_model.load(session, TAGS, str(folder)).signature_def["serving_default"]
        feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
        got = session.run({name: info.name for name, info in signature.outputs.items()}, feeds)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_a_vocabulary_stays_an_asset_and_other_tables_keep_their_entries(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    tf1.saved_model(tmp_path / "model")
    made = converted(tmp_path / "model", tags=TAGS, **QUICK)
    assets = {path.name: path for path in (made.out / "saved_model" / "assets").iterdir()}
    assert assets["vocabulary.txt"].read_text().split() == list(tf1.WORDS)
    assert {"LookupTableFindV2"} <= set(made.left)


def test_lookups_know_their_shape_so_that_what_follows_is_in_engines(tmp_path: Path) -> None:
    tf1.saved_model(tmp_path / "model")
    frozen = freeze(tmp_path / "model", tmp_path / "frozen", tags=TAGS)
    shapes = {
        node.name: tf.TensorShape(node.attr["_output_shapes"].list.shape[0])
        for node in frozen.graph_def().node
        if node.op == "LookupTableFindV2"
    }
    assert len(shapes) == 2
    assert all(shape.rank == 1 for shape in shapes.values())


def test_simple_save_with_a_table_converts(converted: Callable[..., Converted], tmp_path: Path) -> None:
    with tf1.legacy() as session:
        x = v1.placeholder(tf.int64, [None], "x")
        pairs = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1], tf.int64), tf.constant([5, 6], tf.int64))
        y = tf.lookup.StaticHashTable(pairs, -1).lookup(x)
        session.run(v1.tables_initializer())
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"x": x}, {"y": y}, v1.tables_initializer())
    made = converted(tmp_path / "model", **QUICK)
    without_the_input(made, tmp_path / "model")
    assert call(tmp_path / "served", "serving_default", {"x": np.array([1, 0, 9])})["y"].tolist() == [6, 5, -1]


def test_tables_that_change_stay_tables(converted: Callable[..., Converted], tmp_path: Path) -> None:
    with tf1.legacy() as session:
        key, value = v1.placeholder(tf.int64, [None], "key"), v1.placeholder(tf.float32, [None, 2], "value")
        rows = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, [0.0, 0.0], name="rows", checkpoint=True)
        dense = tf.lookup.experimental.DenseHashTable(tf.int64, tf.int64, -1, -7, -8, name="dense", checkpoint=True)
        session.run([rows.insert([3], [[1.0, 2.0]]), dense.insert([3], [9])])
        with tf.control_dependencies([rows.insert(key, value)]):
            size = tf.identity(rows.size())
        signatures = {
            "serving_default": tf1._signature(
                {"key": key}, {"row": tf.nn.relu(rows.lookup(key)) * 2, "dense": dense.lookup(key)}
            ),
            "insert": tf1._signature({"key": key, "value": value}, {"size": size}),
        }
        builder = v1.saved_model.Builder(str(tmp_path / "model"))
        builder.add_meta_graph_and_variables(session, ["serve"], signatures)
        builder.save()
    made = converted(tmp_path / "model", **QUICK)
    loaded = tf.saved_model.load(str(without_the_input(made, tmp_path / "model")))
    serve, insert = loaded.signatures["serving_default"], loaded.signatures["insert"]
    keys = tf.constant([3, 4], tf.int64)
    assert serve(key=keys)["row"].numpy().tolist() == [[2, 4], [0, 0]]
    assert serve(key=keys)["dense"].numpy().tolist() == [9, -1]
    assert insert(key=tf.constant([4], tf.int64), value=tf.constant([[5.0, 6.0]]))["size"].numpy() == 2
    assert serve(key=keys)["row"].numpy().tolist() == [[2, 4], [10, 12]]


def branching(folder: Path, resources: bool) -> None:
    """`total` grows by `x` where that is positive, guarded by an assertion, in branches of TensorFlow 1."""
    with tf1.legacy(resources=resources) as session:
        x = v1.placeholder(tf.float32, [], "x")
        total, scale = v1.get_variable("total", initializer=0.0), v1.get_variable("scale", initializer=3.0)
        with tf.control_dependencies([v1.Assert(x < 100, ["too large", x])]):
            added = v1.cond(x > 0, lambda: tf.identity(v1.assign_add(total, x)), lambda: tf.identity(total) * 1)
        y = tf.nn.relu(added * scale) + v1.while_loop(lambda i: i < 5, lambda i: i + tf.abs(scale), [0.0])
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": y})


@pytest.mark.parametrize("resources", [False, True], ids=["references", "resources"])
def test_writes_assertions_and_loops_in_branches_of_tensorflow_1_do_as_before(
    resources: bool, converted: Callable[..., Converted], tmp_path: Path
) -> None:
    branching(tmp_path / "model", resources)
    made = converted(tmp_path / "model", **QUICK)
    function = tf.saved_model.load(str(without_the_input(made, tmp_path / "model"))).signatures["serving_default"]
    answers = [float(function(x=tf.constant(x))["y"]) for x in (2.0, -1.0, 1.0, -5.0)]
    assert answers == [12.0, 12.0, 15.0, 15.0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        function(x=tf.constant(200.0))


def test_an_input_of_a_tensorflow_1_signature_can_be_fixed(converted: Callable[..., Converted], tmp_path: Path) -> None:
    with tf1.legacy() as session:
        x, is_training, keep_prob, y = tf1.normalized_network()
        session.run(v1.global_variables_initializer())
        inputs = {"images": x, "training": is_training, "keep": keep_prob}
        v1.saved_model.simple_save(session, str(tmp_path / "model"), inputs, {"y": y})
        want = session.run(y, {x: tf1.normalized_inputs()["x"], is_training: False, keep_prob: 1})
    made = converted(tmp_path / "model", constants={"training": False, "keep": 1.0}, **QUICK)
    assert made.left == {}
    np.testing.assert_allclose(made.run(tf1.normalized_inputs())["y"], want, rtol=1e-5)
    assert list(interface(made.out / "saved_model")["serving_default"][1]) == ["images"]


def test_sparse_inputs_of_tensorflow_1_are_refused(tmp_path: Path) -> None:
    with tf1.legacy() as session:
        x = v1.sparse_placeholder(tf.float32, [None, 4], "x")
        y = tf.sparse.sparse_dense_matmul(x, tf.eye(4))
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"x": x}, {"y": y})
    assert "x is a sparse or ragged tensor" in refuse(tmp_path / "model", tmp_path / "out")


def test_a_folder_without_its_variables_is_refused(tmp_path: Path) -> None:
    tf1.saved_model(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "variables")
    message = refuse(tmp_path / "model", tmp_path / "out", tags=TAGS)
    assert "its folder variables/ is missing" in message


def test_an_output_that_needs_what_the_signature_does_not_feed_is_refused(tmp_path: Path) -> None:
    with tf1.legacy() as session:
        x, rate = v1.placeholder(tf.float32, [2], "x"), v1.placeholder(tf.float32, [], "rate")
        v1.saved_model.simple_save(session, str(tmp_path / "model"), {"x": x}, {"y": x * rate})
    assert "depend on rate, which the signature doesn't feed" in refuse(tmp_path / "model", tmp_path / "out")


# what TensorFlow 2 saved


class _Odd(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = Weights(41).variable(4, 4)

    @tf.function(
        input_signature=[
            tf.TensorSpec(None, tf.float32, "x"),
            tf.TensorSpec([None], tf.string, "words"),
            tf.TensorSpec([], tf.int32, "unread"),
        ]
    )
    def serve(self, x: tf.Tensor, words: tf.Tensor, unread: tf.Tensor) -> dict[str, tf.Tensor]:
        y = tf.nn.relu(tf.reshape(x, [-1, 4]) @ self.kernel) * 2
        return {"y": y, "again": y, "x": x, "words": words, "loud": tf.strings.upper(words)}


def test_unknown_rank_unread_inputs_echoes_twins_and_strings_come_out_as_they_were(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    model = _Odd()
    tf.saved_model.save(model, str(tmp_path / "model"), signatures=model.serve)
    before = interface(tmp_path / "model")
    inputs = {"x": Weights(42).array(2, 3, 4), "words": np.array(["a", "b"], object), "unread": np.array(1, np.int32)}
    want = served(tmp_path / "model", inputs)
    np.savez(tmp_path / "samples.npz", x=inputs["x"], words=np.array(["a", "b"]), unread=inputs["unread"])
    made = converted(tmp_path / "model", samples=tmp_path / "samples.npz", **QUICK)
    folder = without_the_input(made, tmp_path / "model")
    assert interface(folder) == before
    got = served(folder, inputs)
    assert sorted(got) == sorted(want)
    for name in ("y", "again", "x"):
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5)
    assert got["loud"].tolist() == [b"A", b"B"]
    assert got["words"].tolist() == [b"a", b"b"]


class _Default(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = Weights(43).variable(4, 4)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x"), tf.TensorSpec([], tf.float32, "scale")])
    def serve(self, x: tf.Tensor, scale: tf.Tensor = tf.constant(3.0)) -> dict[str, tf.Tensor]:  # noqa: B008
        return {"y": tf.nn.relu(x @ self.kernel) * scale}


def test_default_values_of_inputs_stay(converted: Callable[..., Converted], tmp_path: Path) -> None:
    model = _Default()
    tf.saved_model.save(model, str(tmp_path / "model"), signatures={"serving_default": model.serve, "b": model.serve})
    made = converted(tmp_path / "model", **QUICK)
    folder = without_the_input(made, tmp_path / "model")
    x = Weights(44).array(2, 4)
    want = np.maximum(x @ model.kernel.numpy(), 0) * 3
    with tf.Graph().as_default(), v1.Session() as session:
        signatures = v1.saved_model.load(session, ["serve"], str(folder)).signature_def
        for name in ("serving_default", "b"):
            assert tf.make_ndarray(signatures[name].defaults["scale"]) == 3
            got = session.run(signatures[name].outputs["y"].name, {signatures[name].inputs["x"].name: x})
            np.testing.assert_allclose(got, want, rtol=1e-5)


def trained_model(keras: object, path: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Train a small network with Adam; `path`'s suffix says how it is saved. Returns inputs and what it answers."""
    layers = keras.layers  # type: ignore[attr-defined]
    keras.utils.set_random_seed(3)  # type: ignore[attr-defined]
    parts = [layers.Dense(8, activation="relu"), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(2)]
    model = keras.Sequential([layers.Input((4,), name="x-in"), *parts])  # type: ignore[attr-defined]
    x = Weights(45).array(6, 4)
    model.compile("adam", "mse")
    model.fit(x, np.zeros((6, 2)), verbose=0)
    if path.suffix or keras.__name__ == "tf_keras":  # type: ignore[attr-defined]
        model.save(path)
    elif path.name == "export":
        model.export(str(path), verbose=False)
    else:
        tf.saved_model.save(model, str(path))
    return {"x": x}, np.asarray(model(x))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["folder", "m.h5", "m.keras"])
def test_what_keras_2_saved_after_training_freezes_for_inference(name: str, tmp_path: Path) -> None:
    inputs, want = trained_model(pytest.importorskip("tf_keras"), tmp_path / name)
    frozen = freeze(tmp_path / name, tmp_path / "frozen")
    assert frozen.input_names == ("x-in",)
    assert frozen.captures == ()
    got = run_frozen(frozen, {"x-in": inputs["x"]})
    np.testing.assert_allclose(next(iter(got.values())), want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["saved", "m.h5", "m.keras"])
def test_what_keras_3_saved_after_training_freezes_for_inference(name: str, tmp_path: Path) -> None:
    inputs, want = trained_model(tf.keras, tmp_path / name)
    frozen = freeze(tmp_path / name, tmp_path / "frozen")
    assert frozen.captures == ()
    got = run_frozen(frozen, {frozen.input_names[0]: inputs["x"]})
    np.testing.assert_allclose(next(iter(got.values())), want, rtol=1e-4, atol=1e-6)


def test_what_keras_3_exported_converts_with_both_of_its_signatures(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    inputs, want = trained_model(tf.keras, tmp_path / "export")
    before = interface(tmp_path / "export")
    made = converted(tmp_path / "export", backend="onnxruntime")
    assert made.left == {}
    assert interface(made.out / "saved_model") == before
    assert sorted(before) == ["serve", "serving_default"]
    for signature in before:
        got = call(made.out / "saved_model", signature, {"x-in": inputs["x"]})
        np.testing.assert_allclose(got["output_0"], want, rtol=1e-4, atol=1e-6)


class _Switched(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.calls = Weights(48).variable(4, 4), tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x"), tf.TensorSpec([], tf.bool, "training")])
    def serve(self, x: tf.Tensor, training: tf.Tensor) -> dict[str, tf.Tensor]:
        def train() -> tf.Tensor:
            self.calls.assign_add(1)
            return tf.nn.dropout(x, 0.5)

        hidden = tf.cond(training, train, lambda: x)
        wide = tf.cond(tf.logical_not(training), lambda: tf.cond(training, lambda: hidden, lambda: hidden * 2), train)
        return {"y": tf.nn.relu(wide @ self.kernel)}


def test_a_training_input_fixed_to_false_takes_its_branches_away(tmp_path: Path) -> None:
    model = _Switched()
    tf.saved_model.save(model, str(tmp_path / "model"), signatures=model.serve)
    frozen = freeze(tmp_path / "model", tmp_path / "frozen", constants={"training": False})
    assert frozen.input_names == ("x",)
    assert frozen.captures == ()
    assert frozen.side_effects == ()
    assert not {"If", "StatelessIf", "AssignAddVariableOp"} & set(ops(frozen))
    x = Weights(49).array(2, 4)
    want = np.maximum(2 * x @ model.kernel.numpy(), 0)
    np.testing.assert_allclose(run_frozen(frozen, {"x": x})["y"], want, rtol=1e-5)
    other = freeze(model, tmp_path / "other", constants={"training": True})
    assert len(other.captures) == 1
    assert "AssignAddVariableOp" in ops(other)


# live functions

KERNEL = Weights(46).array(4, 4)
ROWS = tf.TensorSpec([None, 4], tf.float32, "x")


class _Plain:
    """No tf.Module: its variable belongs to nobody that TensorFlow knows."""

    def __init__(self) -> None:
        self.kernel = tf.Variable(KERNEL)

    @tf.function(input_signature=[ROWS])
    def serve(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(x @ self.kernel)


def test_bound_methods_open_with_the_variables_of_their_object(tmp_path: Path) -> None:
    owner = _Plain()
    x = Weights(47).array(2, 4)
    for number, function in enumerate((owner.serve, owner.serve.get_concrete_function())):
        frozen = freeze(function, tmp_path / str(number))
        assert frozen.input_names == ("x",)
        np.testing.assert_allclose(run_frozen(frozen, {"x": x})["output_0"], np.maximum(x @ KERNEL, 0), rtol=1e-5)


def test_nested_arguments_and_results_are_flattened_as_tensorflow_saves_them(tmp_path: Path) -> None:
    constant = tf.constant(KERNEL)

    @tf.function
    def serve(pair: dict[str, tf.Tensor], rows: list[tf.Tensor]) -> dict[str, object]:
        return {"a": [pair["left"] @ constant, rows[0] + 1], "b": (rows[1] * pair["right"],)}

    spec = tf.TensorSpec([None, 4], tf.float32)
    function = serve.get_concrete_function({"left": spec, "right": spec}, [spec, spec])
    frozen = freeze(function, tmp_path / "frozen")
    assert frozen.captures == ()
    assert frozen.output_names == ("output_0", "output_1", "output_2")
    values = dict(zip(frozen.input_names, (Weights(seed).array(2, 4) for seed in (1, 2, 3, 4)), strict=True))
    arguments = {
        str(tensor.name).partition(":")[0]: name for tensor, name in zip(frozen.inputs, frozen.input_names, strict=True)
    }
    flat = [values[arguments[tensor.op.name]] for tensor in function.inputs[:4]]
    want = tf.nest.flatten(function(*map(tf.constant, flat)))
    got = run_frozen(frozen, values)
    for name, value in zip(frozen.output_names, want, strict=True):
        np.testing.assert_allclose(got[name], value, rtol=1e-5)


def test_ragged_and_sparse_arguments_and_results_are_refused(tmp_path: Path) -> None:
    cases = {
        "takes a RaggedTensor": (lambda x: tf.reduce_sum(x, 1), tf.RaggedTensorSpec([None, None], tf.float32)),
        "takes a SparseTensor": (lambda x: tf.sparse.reduce_sum(x, 1), tf.SparseTensorSpec([None, 4], tf.float32)),
        "gives a RaggedTensor": (tf.RaggedTensor.from_tensor, ROWS),
        "gives a SparseTensor": (tf.sparse.from_dense, ROWS),
    }
    for words, (body, spec) in cases.items():
        message = refuse(tf.function(body, input_signature=[spec], autograph=False), tmp_path / "out")
        assert words in message


def test_a_module_saved_without_signatures_says_so(tmp_path: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x + 1)
    tf.saved_model.save(module, str(tmp_path / "model"))
    assert "has no signatures" in refuse(tmp_path / "model", tmp_path / "out")


def test_only_saved_models_have_signatures_and_tags(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        tf.nn.relu(v1.placeholder(tf.float32, [2], "x"), name="y")
    (tmp_path / "model.pb").write_bytes(graph.as_graph_def().SerializeToString())
    live = tf.keras.Sequential([tf.keras.layers.Input((2,))])
    for model in (tmp_path / "model.pb", "keras:MobileNetV2@96", live):
        assert "has no signature" in refuse(model, tmp_path / "out", signature="other")
        assert "has no tags" in refuse(model, tmp_path / "out", tags=["serve"])


def test_unknown_tags_are_answered_with_those_there_are(tmp_path: Path) -> None:
    tf1.saved_model(tmp_path / "model")
    message = refuse(tmp_path / "model", tmp_path / "out", tags=["gpu"])
    assert "has no graph with the tags gpu" in message
    assert "--tags cpu,serve or train" in message
    assert "has no graph with the tags serve" in refuse(tmp_path / "model", tmp_path / "out")


def test_names_that_no_argument_can_have_stay_in_a_frozen_graph_too(tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 4], "scope/x")
        tf.nn.relu(x @ tf.eye(4), name="scope/y")
    (tmp_path / "model.pb").write_bytes(graph.as_graph_def().SerializeToString())
    report = convert(tmp_path / "model.pb", tmp_path / "out", Config(backend="onnxruntime", min_region=1))
    assert report.verification.passed
    signature = interface(tmp_path / "out" / "saved_model")["serving_default"]
    assert (list(signature[1]), list(signature[2])) == (["scope/x"], ["scope/y"])
    got = served(tmp_path / "out" / "saved_model", {"scope/x": np.float32([[1, -1, 2, -2]])})
    assert got["scope/y"].tolist() == [[1, 0, 2, 0]]
