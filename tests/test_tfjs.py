"""TensorFlow.js graph models open as the graphs that they were, with fused ops as plain ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import tfjs as fixture
from fixtures.example import Weights
from stages import tfjs
from stages.errors import ModelError
from stages.graph_files import open_graph_file
from stages.unfuse import unfuse
from tests.conftest import Converted, relative_error


def small_graph() -> tf.compat.v1.GraphDef:
    """`x` float32 (?, 8, 8, 3) to `y`: a convolution, an int64 reshape; and `words`, strings."""
    weights = Weights(0)
    graph = tf.Graph()
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 3], "x")
        hidden = tf.nn.relu(tf.nn.conv2d(x, weights.array(3, 3, 3, 4), 2, "SAME") + weights.array(4))
        flat = tf.reshape(hidden, tf.constant([-1, 64], tf.int64))
        tf.matmul(flat, weights.array(64, 5), name="y")
        tf.constant(["a", "", "long word"], name="words")
    return graph.as_graph_def()


def run(graph_def: tf.compat.v1.GraphDef, fetch: str, **feeds: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            value: np.ndarray = session.run(f"{fetch}:0", {f"{name}:0": array for name, array in feeds.items()})
    return value


X = Weights(1).array(2, 8, 8, 3)


@pytest.mark.parametrize(("quantize", "error"), [("", 0), ("float16", 2e-3), ("uint16", 1e-4), ("uint8", 3e-2)])
def test_weights_of_every_storage_come_back(quantize: str, error: float, tmp_path: Path) -> None:
    original = small_graph()
    model = tfjs.read(fixture.write(original, tmp_path / "js", quantize=quantize))
    expected = run(original, "y", x=X)
    assert relative_error(expected, run(model.graph_def, "y", x=X)) <= error
    assert run(model.graph_def, "words").tolist() == [b"a", b"", b"long word"]
    assert not any(node.device for node in model.graph_def.node)


def test_the_signature_names_the_outputs(tmp_path: Path) -> None:
    path = fixture.write(small_graph(), tmp_path / "js")
    content = json.loads(path.read_text())
    content["signature"] = {"inputs": {"x": {"name": "x:0"}}, "outputs": {"hidden": {"name": "Relu:0"}, "y": {}}}
    path.write_text(json.dumps(content))
    model = open_graph_file(path, None, None)
    assert (model.inputs, model.outputs) == (("x:0",), ("Relu:0", "y:0"))


def fused(op: str, steps: list[str], *extra: np.ndarray) -> tf.compat.v1.GraphDef:
    """`x` through one fused op `y`; `extra` are its further arguments."""
    weights = Weights(2)
    dense = op == "_FusedMatMul"
    kernel = weights.array(3, 6) if dense else weights.array(3, 3, 3, 2 if "Depthwise" in op else 6)
    graph = tf.Graph()
    with graph.as_default():
        tf.compat.v1.placeholder(tf.float32, [None, 3] if dense else [None, 8, 8, 3], "x")
        tf.constant(kernel, name="kernel")
        for index, value in enumerate(extra):
            tf.constant(value, name=f"extra_{index}")
    graph_def = graph.as_graph_def()
    node = graph_def.node.add(name="y", op=op, input=["x", "kernel", *(f"extra_{i}" for i in range(len(extra)))])
    node.attr["T"].type = tf.float32.as_datatype_enum
    node.attr["num_args"].i = len(extra)
    node.attr["TArgs"].list.type.extend([tf.float32.as_datatype_enum] * len(extra))
    node.attr["fused_ops"].list.s.extend(step.encode() for step in steps)
    node.attr["leakyrelu_alpha"].f = 0.3
    if not dense:
        node.attr["strides"].list.i.extend([1, 2, 2, 1])
        node.attr["padding"].s = b"SAME"
    return graph_def


@pytest.mark.parametrize("op", ["_FusedConv2D", "_FusedMatMul"])
@pytest.mark.parametrize("activation", ["", "Relu", "Relu6", "Elu", "LeakyRelu"])
def test_a_fused_op_gives_what_tensorflows_own_kernel_gives(op: str, activation: str) -> None:
    graph_def = fused(op, ["BiasAdd", *([activation] if activation else [])], Weights(3).array(6))
    x = X[:, 0, 0] if op == "_FusedMatMul" else X
    expected = run(graph_def, "y", x=x)
    unfuse(graph_def)
    assert not any("Fused" in node.op for node in graph_def.node)
    assert relative_error(expected, run(graph_def, "y", x=x)) <= 1e-6


@pytest.mark.parametrize("op", ["_FusedConv2D", "FusedDepthwiseConv2dNative"])
def test_a_fused_prelu_slopes_below_zero_by_channel(op: str) -> None:
    bias, slopes = Weights(3).array(6), Weights(4).array(6)
    graph_def = fused(op, ["BiasAdd", "Prelu"], bias, slopes)
    plain = fused(op, ["BiasAdd"], bias)
    for graph in (graph_def, plain):
        unfuse(graph)
    before = run(plain, "y", x=X)
    assert (before < 0).any()
    np.testing.assert_allclose(run(graph_def, "y", x=X), np.where(before > 0, before, slopes * before), rtol=1e-6)


def test_what_has_no_plain_form_is_refused() -> None:
    statistics = [Weights(5).array(6) for _ in range(4)]
    with pytest.raises(ModelError, match="FusedBatchNorm has no plain form"):
        unfuse(fused("_FusedConv2D", ["FusedBatchNorm"], *statistics))


def break_json(path: Path) -> None:
    path.write_text("{")


def lose_a_shard(path: Path) -> None:
    (path.parent / "group1-shard2.bin").unlink()


def shorten_a_shard(path: Path) -> None:
    shards = sorted(path.parent.glob("*.bin"), key=lambda shard: len(shard.name))
    (path.parent / shards[-1]).write_bytes(b"")


def layers_model(path: Path) -> None:
    path.write_text(json.dumps({"modelTopology": {"model_config": {}}, "weightsManifest": []}))


def reach_outside(path: Path) -> None:
    content = json.loads(path.read_text())
    content["weightsManifest"][0]["paths"] = ["../secret.bin"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_json, "is no graph model"),
        (lose_a_shard, "group1-shard2.bin"),
        (shorten_a_shard, "is no graph model"),
        (layers_model, "layers model"),
        (reach_outside, "outside its folder"),
    ],
)
def test_damage_is_named(damage: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    path = fixture.write(small_graph(), tmp_path / "js")
    damage(path)
    with pytest.raises(ModelError, match=words):
        tfjs.read(path)


def test_a_graph_model_is_converted(tmp_path: Path, converted: Callable[..., Converted]) -> None:
    original = fused("_FusedConv2D", ["BiasAdd", "Relu"], Weights(3).array(6))
    result = converted(str(fixture.write(original, tmp_path / "js")), backend="onnxruntime")
    assert result.report.ops_in_engines == result.report.ops_total == 3
    (actual,) = result.run({"x": X}).values()
    assert relative_error(run(original, "y", x=X), actual) <= 1e-5
