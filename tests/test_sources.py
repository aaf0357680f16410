"""Opening models: each kind opens, and each bad input says what is wrong and what would help."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops import resource_variable_ops

from fixtures import cuts, stateful, vision
from stages import sources
from stages.errors import FreezeError, ModelError
from stages.freeze import freeze


def write_graph(graph: tf.Graph, path: Path) -> Path:
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path


def dense_graph() -> tf.Graph:
    """`x` float32 (?, 4), PlaceholderWithDefault `rate`, output `y`; an unread Placeholder `unused`."""
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        tf.compat.v1.placeholder(tf.float32, [], "unused")
        rate = tf.compat.v1.placeholder_with_default(2.0, [], "rate")
        hidden = tf.nn.relu(tf.matmul(x, tf.ones([4, 3])), name="hidden")
        tf.multiply(hidden, rate, name="y")
    return graph


def refuse(model: object, out: Path, error: type[Exception] = ModelError, **options: object) -> str:
    """Freeze something bad; return the message, and check that nothing is left behind."""
    before = set(out.parent.iterdir())
    with pytest.raises(error) as caught:
        freeze(model, out, **options)  # type: ignore[arg-type]
    assert set(out.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n  try: " in message
    return message


def test_a_pb_needs_no_names_where_it_has_one_output(tmp_path: Path) -> None:
    model = sources.open_model(write_graph(dense_graph(), tmp_path / "model.pb"))
    assert (model.inputs, model.outputs) == (("x:0",), ("y:0",))
    assert (model.input_names, model.output_names) == (("x",), ("y",))


def test_a_placeholder_with_default_becomes_an_input_only_when_named(tmp_path: Path) -> None:
    path = write_graph(dense_graph(), tmp_path / "model.pb")
    frozen = freeze(path, tmp_path / "frozen", inputs=["x:0", "rate"], outputs=["y"])
    assert [tensor.name for tensor in frozen.inputs] == ["x:0", "rate:0"]
    assert not [node for node in frozen.graph_def().node if node.op == "PlaceholderWithDefault"]
    default = freeze(path, tmp_path / "default")
    assert [node.name for node in default.graph_def().node if node.op == "PlaceholderWithDefault"] == ["rate"]


def test_a_pb_can_be_cut_inside(tmp_path: Path) -> None:
    path = write_graph(dense_graph(), tmp_path / "model.pb")
    frozen = freeze(path, tmp_path / "frozen", inputs=["hidden:0"], outputs=["y:0"])
    assert frozen.inputs[0].shape == (None, 3)
    assert not [node for node in frozen.graph_def().node if node.op == "MatMul"]


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_keras_files_open_with_the_names_of_the_model(suffix: str, tmp_path: Path) -> None:
    vision.small_cnn().save(tmp_path / f"model{suffix}")
    model = sources.open_model(tmp_path / f"model{suffix}")
    assert model.input_names == ("image",)
    assert model.source.kind == "keras"


def test_a_keras_2_file_opens(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    old = tf_keras.Sequential([layers.Input((6, 4), name="x"), layers.LSTM(3), layers.Dense(2)])
    old.save(tmp_path / "model.h5")
    x = np.random.RandomState(0).rand(2, 6, 4).astype(np.float32)
    model = sources.open_model(tmp_path / "model.h5")
    assert model.function is not None
    result = tf.nest.flatten(model.function(tf.constant(x)))[0]
    np.testing.assert_allclose(result, old(x), rtol=1e-5)


def test_a_keras_2_sequential_file_without_an_input_layer_has_no_axis_too_many(tmp_path: Path) -> None:
    """As Keras wrote them until 2.3; Keras 3.15 takes the batch axis of `batch_input_shape` for one of the sample's."""
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    old = tf_keras.Sequential([layers.Reshape((8, 6, 1), input_shape=(8, 6), name="first"), layers.Conv2D(3, 3)])
    path = tmp_path / "model.h5"
    old.save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        assert config["config"]["layers"].pop(0)["class_name"] == "InputLayer"
        config["config"]["layers"][0]["config"]["batch_input_shape"] = [None, 8, 6]
        file.attrs["model_config"] = json.dumps(config)
        file.attrs["keras_version"] = "2.3.1"
    before = path.read_bytes()
    model = sources.open_model(path)
    assert model.function is not None
    assert model.input_names == ("first_input",)
    assert model.function.inputs[0].shape.as_list() == [None, 8, 6]
    x = np.random.RandomState(0).rand(2, 8, 6).astype(np.float32)
    np.testing.assert_allclose(tf.nest.flatten(model.function(tf.constant(x)))[0], old(x), rtol=1e-5, atol=1e-6)
    assert path.read_bytes() == before


def test_a_live_keras_2_model_opens_for_inference(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    old = tf_keras.Sequential([layers.Input((4,), name="x"), layers.Dense(2), layers.Dropout(0.5)])
    frozen = freeze(old, tmp_path / "frozen")
    assert not [node.op for node in frozen.graph_def().node if "Random" in node.op]


def test_keras_applications_open_at_a_reduced_size_with_the_same_weights_each_time() -> None:
    first, second = (sources.open_model("keras:MobileNetV2@96") for _ in range(2))
    assert first.function is not None
    assert first.function.inputs[0].shape.as_list() == [None, 96, 96, 3]
    weights = [model.owner.get_weights()[0] for model in (first, second)]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(*weights)


def test_functions_open_live() -> None:
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, "b"), tf.TensorSpec([2], tf.float32, "a")])
    def add(b: tf.Tensor, a: tf.Tensor) -> tf.Tensor:
        return a + b

    for function in (add, add.get_concrete_function()):
        model = sources.open_model(function)
        assert (model.input_names, model.output_names) == (("a", "b"), ("output_0",))


def test_the_only_signature_is_taken_whatever_its_name(tmp_path: Path) -> None:
    module = cuts.two_outputs().module
    tf.saved_model.save(module, str(tmp_path / "model"), signatures={"odd": module.serve})
    assert sources.open_model(tmp_path / "model").source.signature == "odd"


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    assert "nowhere.pb: no such file" in refuse(tmp_path / "nowhere.pb", tmp_path / "out")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("hello")
    assert "is not a model" in refuse(tmp_path / "model.txt", tmp_path / "out")
    (tmp_path / "folder").mkdir()
    assert "holds no SavedModel" in refuse(tmp_path / "folder", tmp_path / "out")
    (tmp_path / "model.h5").write_text("hello")
    assert "is no Keras model" in refuse(tmp_path / "model.h5", tmp_path / "out")
    (tmp_path / "model.keras").write_text("hello")
    assert "is no Keras model" in refuse(tmp_path / "model.keras", tmp_path / "out")
    assert "is not a model" in refuse(7, tmp_path / "out")


def test_a_damaged_saved_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"\xff\xff not a protobuf")
    assert "can't be read" in refuse(tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize("keep", [0.5, 0.97])
def test_a_truncated_pb_is_refused(keep: float, tmp_path: Path) -> None:
    data = dense_graph().as_graph_def().SerializeToString()
    (tmp_path / "model.pb").write_bytes(data[: int(len(data) * keep)])
    assert "model.pb" in refuse(tmp_path / "model.pb", tmp_path / "out")


def test_an_empty_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pb").write_bytes(b"")
    assert "empty graph" in refuse(tmp_path / "model.pb", tmp_path / "out")


def test_the_pb_inside_a_saved_model_points_to_its_folder(tmp_path: Path) -> None:
    cuts.two_outputs().save(tmp_path / "model")
    assert f"give the folder {tmp_path / 'model'}" in refuse(tmp_path / "model" / "saved_model.pb", tmp_path / "out")


def test_several_possible_outputs_are_listed(tmp_path: Path) -> None:
    graph = dense_graph()
    with graph.as_default():
        tf.abs(graph.get_tensor_by_name("hidden:0"), name="second")
    message = refuse(write_graph(graph, tmp_path / "model.pb"), tmp_path / "out")
    assert "y, second" in message
    assert "--outputs" in message


def test_an_input_that_is_left_out_is_named(tmp_path: Path) -> None:
    graph = dense_graph()
    with graph.as_default():
        extra = tf.compat.v1.placeholder(tf.float32, [], "extra")
        tf.add(graph.get_tensor_by_name("y:0"), extra, name="z")
    path = write_graph(graph, tmp_path / "model.pb")
    assert "depend on extra too" in refuse(path, tmp_path / "out", inputs=["x:0"], outputs=["z:0"])


def test_unknown_names_come_with_close_matches(tmp_path: Path) -> None:
    path = write_graph(dense_graph(), tmp_path / "model.pb")
    assert "hidden" in refuse(path, tmp_path / "out", outputs=["hiden:0"]).partition("try:")[2]
    assert "one of" in refuse(path, tmp_path / "out", inputs=["xx:0"], outputs=["y:0"])
    saved = stateful.two_signatures().save(tmp_path / "model")
    assert "serving_default" in refuse(saved, tmp_path / "out", signature="serving_defualt")
    assert "result" in refuse(saved, tmp_path / "out", outputs=["resutl"])
    assert "one of x" in refuse(saved, tmp_path / "out", inputs=["y"])
    assert "ResNet50" in refuse("keras:Resnet50", tmp_path / "out")
    assert "not an image size" in refuse("keras:ResNet50@big", tmp_path / "out")


def test_unknown_tags_are_refused(tmp_path: Path) -> None:
    saved = cuts.two_outputs().save(tmp_path / "model")
    assert "tags" in refuse(saved, tmp_path / "out", tags=["gpu"])


def test_an_op_that_is_not_loaded_is_named(tmp_path: Path) -> None:
    graph_def = dense_graph().as_graph_def()
    next(node for node in graph_def.node if node.name == "hidden").op = "NobodyKnowsThisOp"
    (tmp_path / "model.pb").write_bytes(graph_def.SerializeToString())
    message = refuse(tmp_path / "model.pb", tmp_path / "out")
    assert "uses the op NobodyKnowsThisOp, which is not loaded" in message
    saved = cuts.two_outputs().save(tmp_path / "model")
    file = saved / "saved_model.pb"
    file.write_bytes(file.read_bytes().replace(b"Softmax", b"Hardmax"))
    (saved / "fingerprint.pb").unlink()
    assert "uses the op Hardmax" in refuse(saved, tmp_path / "out")


def test_a_pb_with_variables_is_not_frozen(tmp_path: Path) -> None:
    graph = tf.Graph()
    with graph.as_default():
        variable = tf.compat.v1.get_variable("v", [3], use_resource=True)
        tf.add(tf.compat.v1.placeholder(tf.float32, [3], "x"), variable, name="y")
    path = write_graph(graph, tmp_path / "model.pb")
    assert "is not frozen" in refuse(path, tmp_path / "out", outputs=["y"])


def test_weights_without_a_model_are_refused(tmp_path: Path) -> None:
    vision.small_cnn().save_weights(tmp_path / "model.weights.h5")
    assert "weights without a model" in refuse(tmp_path / "model.weights.h5", tmp_path / "out")


def test_a_keras_2_file_without_tf_keras_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.attrs["model_config"] = '{"class_name": "Model", "config": {"layers": [{"class_name": "Gone"}]}}'
        file.attrs["keras_version"] = "2.15.0"
    monkeypatch.setitem(__import__("sys").modules, "tf_keras", None)
    assert "graftrt[keras2]" in refuse(tmp_path / "model.h5", tmp_path / "out")


def test_an_unbuilt_keras_model_is_refused(tmp_path: Path) -> None:
    model = tf.keras.Sequential([tf.keras.layers.Dense(2)])
    assert "input shapes are unknown" in refuse(model, tmp_path / "out")


def test_a_function_without_a_signature_is_refused(tmp_path: Path) -> None:
    assert "has no input signature" in refuse(tf.function(lambda x: x), tmp_path / "out")


def test_a_bare_function_over_a_table_is_refused(tmp_path: Path) -> None:
    module = stateful.table_front_end().module
    function = module.serve.get_concrete_function()
    assert "tf.saved_model.save" in refuse(function, tmp_path / "out")


def test_a_variable_without_a_value_is_refused(tmp_path: Path) -> None:
    variable = resource_variable_ops.UninitializedVariable(dtype=tf.float32, shape=[3])

    @tf.function(input_signature=[tf.TensorSpec([3], tf.float32, "x")])
    def add(x: tf.Tensor) -> tf.Tensor:
        return x + variable

    assert "has no value" in refuse(add, tmp_path / "out", FreezeError)
