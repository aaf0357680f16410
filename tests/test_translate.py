"""Translation of TF graphs to ONNX, checked by running both."""

from __future__ import annotations

import ast
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf

from stages.errors import ExportError
from stages.translate import (
    OPSET,
    UNSAFE,
    check_internals,
    origins,
    origins_by_node,
    translatable_ops,
    translate,
)
from stages.translate.provenance import all_nodes
from tests.translation import Graph, assert_same, frozen


def image(batch: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 16, 16, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def cnn() -> Graph:
    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    model = tf.keras.Sequential(
        [
            tf.keras.Input((16, 16, 3)),
            layers.Conv2D(8, 3, padding="same"),
            layers.BatchNormalization(beta_initializer="normal", gamma_initializer="uniform"),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    return frozen(lambda x: model(x, training=False), tf.TensorSpec((None, 16, 16, 3)))


@pytest.mark.parametrize("batch", [1, 3])
def test_cnn_computes_what_tensorflow_computes(cnn: Graph, batch: int) -> None:
    assert_same(cnn, cnn[2], image(batch))


def test_cnn_keeps_one_transpose_and_fuses_batch_normalisation(cnn: Graph) -> None:
    kinds = [node.op_type for node in translate(*cnn).model.graph.node]
    assert kinds.count("Transpose") == 1
    assert kinds.count("Conv") == 2
    assert "Mul" not in kinds
    assert len(kinds) <= 12


def test_every_node_of_a_cnn_says_which_op_it_came_from(cnn: Graph) -> None:
    types = {node.name: node.op for node in cnn[0].node if node.op not in ("Const", "Placeholder")}
    expected = {"Conv": "Conv2D", "Relu": "Relu", "MaxPool": "MaxPool", "Softmax": "Softmax", "MatMul": "MatMul"}
    for node in translate(*cnn).model.graph.node:
        found = origins(node, types.keys())
        assert found, node.name
        if node.op_type in expected:
            assert expected[node.op_type] in {types[op] for op in found}, node.name


def test_exact_gelu_is_translated() -> None:
    graph = frozen(lambda x: tf.nn.gelu(x, approximate=False), tf.TensorSpec((None, 7)))
    assert "Erfc" in {node.op for node in graph[0].node}
    assert_same(graph, graph[2], np.linspace(-4, 4, 14, dtype=np.float32).reshape(2, 7))


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32])
def test_floor_division_rounds_down_for_negative_numbers(dtype: type[np.number]) -> None:
    spec = tf.TensorSpec((None,), tf.as_dtype(dtype))
    graph = frozen(lambda x, y: (x // y, x % y), spec, spec)
    assert_same(graph, graph[2], np.array([7, -7, 7, -7, 6], dtype), np.array([3, 3, -3, -3, -3], dtype))


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", [tf.int32, tf.int64, tf.uint8])
def test_one_hot_of_indices_out_of_range_is_cold(dtype: tf.DType, axis: int) -> None:
    graph = frozen(
        lambda x: (tf.one_hot(x, 4, axis=axis), tf.one_hot(x[0, 0], 4), tf.one_hot(x, 3, 7, 2, dtype=tf.int64)),
        tf.TensorSpec((None, 3), dtype),
    )
    indices = [[0, 3, 4], [200, 1, 2]] if dtype == tf.uint8 else [[0, -1, 3], [4, -4, 2]]
    assert_same(graph, graph[2], np.array(indices, dtype.as_numpy_dtype))


def test_one_hot_takes_a_computed_depth() -> None:
    graph = frozen(tf.one_hot, tf.TensorSpec((None,), tf.int32), tf.TensorSpec((), tf.int32))
    assert_same(graph, graph[2], np.array([0, -1, 2], np.int32), np.array(4, np.int32))


def test_unsupported_op_is_named_by_its_tensorflow_node() -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        y = tf.nn.relu(x)
        return tf.nn.softmax(tf.math.bessel_i0e(y, name="inside/bessel") + 1.0)

    found = translate(*frozen(function, tf.TensorSpec((3, 3)))).unsupported
    assert [(node, op) for node, op, _ in found] == [("inside/bessel/BesselI0e", "BesselI0e")]
    assert "no translation" in found[0][2]


def test_unsupported_op_in_a_function_is_blamed_on_the_op_that_calls_it() -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, tf.math.bessel_i0e(v)), (0, x))[1]

    graph = frozen(function, tf.TensorSpec((3, 3)))
    assert {op for _, op, _ in translate(*graph).unsupported} == {"StatelessWhile"}


def test_a_handlers_failure_names_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        @classmethod
        def version_9(cls, *_: object, **__: object) -> None:
            raise ValueError("not today")

    monkeypatch.setitem(sys.modules["stages.translate.handlers"].HANDLERS, "Erfc", Failing)
    (found,) = translate(*frozen(lambda x: tf.math.erfc(x) + 1.0, tf.TensorSpec((None, 7)))).unsupported
    assert found[1] == "Erfc"
    assert "failed" in found[2]
    assert "not today" in found[2]


def test_a_wrong_translation_in_a_loop_is_blamed_on_the_loop() -> None:
    def function(x: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, tf.scatter_nd(rows, v, [2, 2])), (0, x))[1]

    graph = frozen(function, tf.TensorSpec((2, 2)), tf.TensorSpec((2, 1), tf.int32))
    ((_, op, why),) = translate(*graph).unsupported
    assert op == "StatelessWhile"
    assert "ScatterNd" in why


def test_integer_division_in_a_loop_rounds_down() -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda i, _: i < 2, lambda i, v: (i + 1, v // 2 + v % 3), (0, x))[1]

    graph = frozen(function, tf.TensorSpec((4,), tf.int32))
    assert_same(graph, graph[2], np.array([-7, 7, -1, -2], np.int32))


def test_nodes_of_a_loop_body_have_the_loop_as_origin() -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda i, _: i < 3, lambda i, v: (i + 1, tf.tanh(v)), (0, x))[1]

    graph = frozen(function, tf.TensorSpec((2, 2)))
    translation = assert_same(graph, graph[2], np.full((2, 2), 0.5, np.float32))
    loops = {node.name for node in graph[0].node if node.op == "StatelessWhile"}
    nodes = list(all_nodes(translation.model.graph))
    tanh = next(node for node in nodes if node.op_type == "Tanh")
    assert len(nodes) > len(translation.model.graph.node)
    assert origins_by_node(translation.model, loops)[tanh.name] == loops


def test_interface_is_named_by_position_with_tensorflows_sizes() -> None:
    graph = frozen(
        lambda a, b: (a * 2.0, tf.reduce_sum(b, axis=0)), tf.TensorSpec((None, 4, None)), tf.TensorSpec((None, 5))
    )
    model = translate(*graph).model

    def dims(value: onnx.ValueInfoProto) -> list[object]:
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert {value.name: dims(value) for value in model.graph.input} == {
        "input_0": ["input_0_axis_0", 4, "input_0_axis_2"],
        "input_1": ["input_1_axis_0", 5],
    }
    assert [(value.name, dims(value)) for value in model.graph.output] == [
        ("output_0", ["input_0_axis_0", 4, "input_0_axis_2"]),
        ("output_1", [5]),
    ]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]


def test_passed_through_repeated_and_constant_outputs_are_outputs_of_their_own() -> None:
    graph = frozen(
        lambda x: (tf.nn.relu(x, name="relu"), tf.constant([1.0, 2.0], name="fixed")), tf.TensorSpec((None, 2))
    )
    outputs = [graph[1][0], "relu:0", "relu:0", "fixed:0", graph[1][0]]
    translation = assert_same(graph, outputs, np.array([[-1, 2]], np.float32))
    assert [value.name for value in translation.model.graph.output] == [f"output_{index}" for index in range(5)]
    made = [tensor for node in translation.model.graph.node for tensor in node.output]
    assert {f"output_{index}" for index in range(5)} <= set(made)


def test_a_graph_that_only_passes_inputs_through_is_translated() -> None:
    graph = frozen(lambda x: x, tf.TensorSpec((None, 2)))
    assert_same(graph, [graph[1][0]], np.ones((3, 2), np.float32))


def test_a_large_constant_can_be_an_output() -> None:
    big = np.arange(40_000, dtype=np.float32)
    graph = frozen(lambda x: (x + 1.0, tf.constant(big, name="big")), tf.TensorSpec((2,)))
    assert_same(graph, [graph[2][0], "big:0"], np.zeros(2, np.float32))


def test_unused_input_is_absent() -> None:
    graph = frozen(lambda a, b, c: a + c, *[tf.TensorSpec((2,))] * 3)
    translation = assert_same(graph, graph[2], *[np.full(2, value, np.float32) for value in (1, 2, 3)])
    assert [value.name for value in translation.model.graph.input] == ["input_0", "input_2"]


@pytest.mark.parametrize("dtype", [tf.int64, tf.int32, tf.float16])
def test_integer_and_bool_interfaces_keep_their_dtypes(dtype: tf.DType) -> None:
    def function(x: tf.Tensor, keep: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.where(keep, x, x + tf.cast(7, dtype)), tf.logical_and(keep, x > tf.cast(1, dtype))

    graph = frozen(function, tf.TensorSpec((None,), dtype), tf.TensorSpec((None,), tf.bool))
    assert_same(graph, graph[2], np.array([1, 2, 3], dtype.as_numpy_dtype), np.array([True, False, True]))


def test_bfloat16_is_not_passed_off_as_float16() -> None:
    graph = frozen(lambda x: tf.matmul(x, tf.ones((3, 2), tf.bfloat16)) + 1, tf.TensorSpec((None, 3), tf.bfloat16))
    model = translate(*graph).model
    tensors = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in tensors} == {onnx.TensorProto.BFLOAT16}
    assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in model.graph.initializer}


def test_names_are_unique_and_not_empty(cnn: Graph) -> None:
    names = [node.name for node in all_nodes(translate(*cnn).model.graph)]
    assert all(names)
    assert len(set(names)) == len(names)


def test_equal_graphs_give_equal_models_whatever_was_translated_before(cnn: Graph) -> None:
    first = translate(*cnn).model.SerializeToString(deterministic=True)
    translate(*frozen(lambda x: tf.nn.relu(x) + 1.0, tf.TensorSpec((2,))))
    assert translate(*cnn).model.SerializeToString(deterministic=True) == first


def test_which_of_equal_constants_is_kept_does_not_show() -> None:
    def chain(x: tf.Tensor) -> tf.Tensor:
        for _ in range(100):
            x = tf.tanh(x * 0.7) + 0.3
        return x

    graph = frozen(chain, tf.TensorSpec((None, 4)))
    models = {translate(*graph).model.SerializeToString(deterministic=True) for _ in range(4)}
    assert len(models) == 1


@pytest.mark.slow
def test_equal_graphs_give_equal_models_in_every_process(cnn: Graph, tmp_path: Path) -> None:
    (tmp_path / "graph.pb").write_bytes(cnn[0].SerializeToString())
    script = (
        "import hashlib, pathlib, sys, tensorflow as tf; from stages.translate import translate;"
        "graph = tf.compat.v1.GraphDef(); graph.ParseFromString(pathlib.Path(sys.argv[1]).read_bytes());"
        "model = translate(graph, sys.argv[2:3], sys.argv[3:]).model;"
        "print(hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest())"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "graph.pb"), *cnn[1], *cnn[2]]
    digests = {
        subprocess.run(
            command, env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(digests) == 1


def test_tf2onnx_is_left_as_it_was_found(cnn: Graph, caplog: pytest.LogCaptureFixture) -> None:
    from tf2onnx import graph, handler, tf_utils, tfonnx, utils

    def state() -> list[object]:
        logger = logging.getLogger("tf2onnx")
        return [
            dict(vars(graph.Graph)),
            dict(vars(graph.Node)),
            dict(vars(handler.tf_op)),
            dict(vars(tfonnx)),
            dict(tf_utils.TF_TO_ONNX_DTYPE),
            dict(utils.ONNX_TO_NUMPY_DTYPE),
            [set(ops) for ops in handler.tf_op.get_opsets()[""]],
            (utils.INTERNAL_NAME, logger.handlers[:], logger.propagate, logger.level),
        ]

    before = state()
    translate(*cnn)
    with pytest.raises(ExportError):
        translate(cnn[0], cnn[1], ["nowhere:0"])
    assert state() == before
    assert "Erfc" not in handler.tf_op.create_mapping(OPSET, None)
    assert not [record for record in caplog.records if record.name.startswith("tf2onnx")]


def test_tf2onnx_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    graph = frozen(tf.math.bessel_i0e, tf.TensorSpec((3, 3)))
    capfd.readouterr()
    translate(*graph)
    assert "tf2onnx" not in "".join(capfd.readouterr())


def test_a_crashing_pass_is_left_out(cnn: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    from tf2onnx.optimizer.reshape_optimizer import ReshapeOptimizer

    def crash(self: object, graph: object) -> object:
        for node in list(graph.get_nodes())[:3]:  # type: ignore[attr-defined]
            node.type = "Ruined"
        raise RuntimeError("crash")

    monkeypatch.setattr(ReshapeOptimizer, "_optimize", crash)
    translation = assert_same(cnn, cnn[2], image(2))
    assert translation.skipped_passes == ("reshape_optimizer",)


def test_installed_tf2onnx_has_the_internals_that_are_used() -> None:
    check_internals()


def _used_of_tf2onnx(file: Path) -> set[str]:
    """`module:name` of everything that a file takes from tf2onnx at run time."""
    tree = ast.parse(file.read_text())
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules: dict[str, str] = {}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in typing and (node.module or "").split(".")[0] == "tf2onnx":
            for alias in node.names:
                if node.module == "tf2onnx":
                    modules[alias.asname or alias.name] = f"tf2onnx.{alias.name}"
                else:
                    used.add(f"{node.module}:{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            used.add(f"{modules[node.value.id]}:{node.attr}")
    return used


def test_everything_that_is_used_of_tf2onnx_is_checked_at_the_start() -> None:
    folder = Path(translate.__code__.co_filename).parent
    used = {place for file in folder.rglob("*.py") for place in _used_of_tf2onnx(file)}
    internals = sys.modules["stages.translate.library"].INTERNALS
    unchecked = {
        place for place in used if not any(known == place or known.startswith(f"{place}.") for known in internals)
    }
    assert len(used) > 15
    assert unchecked == set()


@pytest.mark.parametrize("place", ["tf2onnx.graph:Graph.vanished", "tf2onnx.vanished:thing"])
def test_moved_internals_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setitem(sys.modules["stages.translate.library"].INTERNALS, place, ())
    with pytest.raises(ExportError, match=r"vanished[\s\S]*1\.17"):
        translatable_ops()


def test_another_version_of_tf2onnx_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import tf2onnx

    monkeypatch.setattr(tf2onnx, "__version__", "1.99.0")
    with pytest.raises(ExportError, match=r"1\.99\.0[\s\S]*1\.17"):
        translatable_ops()


def test_translatable_ops_are_tensorflows_less_the_unsafe() -> None:
    ops = translatable_ops()
    assert {"Conv2D", "MatMul", "Erfc", "FusedBatchNormV3", "Einsum", "StatelessWhile"} <= ops
    assert not ops & UNSAFE.keys()
    assert not ops & {"BesselI0e", "Placeholder", "Loop", "ParseExampleV2"}
    assert all(UNSAFE.values())


@pytest.mark.parametrize("outputs", [[], ["nowhere:0"]])
def test_wrong_outputs_are_a_clear_error(cnn: Graph, outputs: list[str]) -> None:
    with pytest.raises(ExportError, match=r"outputs|nowhere"):
        translate(cnn[0], cnn[1], outputs)


def test_graph_is_not_changed(cnn: Graph) -> None:
    before = cnn[0].SerializeToString(deterministic=True)
    translate(*cnn)
    assert cnn[0].SerializeToString(deterministic=True) == before


@pytest.mark.slow
def test_resnet50_is_exported_in_a_fraction_of_tf2onnx_own_time(record_property: Callable[[str, object], None]) -> None:
    import tf2onnx

    tf.keras.utils.set_random_seed(0)
    model = tf.keras.applications.ResNet50(weights=None)
    spec = tf.TensorSpec((None, 224, 224, 3))
    graph = frozen(lambda x: model(x, training=False), spec)
    start = time.perf_counter()
    translation = translate(*graph)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    stock, _ = tf2onnx.convert.from_keras(model, (spec,), opset=OPSET)
    theirs = time.perf_counter() - start
    nodes = len(translation.model.graph.node), len(stock.graph.node)
    record_property("seconds and nodes, ours and stock", json.dumps([ours, theirs, *nodes]))
    print(f"ResNet50: {ours:.2f} s, {nodes[0]} nodes; stock tf2onnx {theirs:.2f} s, {nodes[1]} nodes")
    assert nodes[0] <= nodes[1]
    assert ours <= 0.4 * theirs


def test_only_one_thread_at_a_time_is_in_tf2onnx(cnn: Graph) -> None:
    import threading

    expected = translate(*cnn).model.SerializeToString(deterministic=True)
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(translate(*cnn).model.SerializeToString(deterministic=True)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4
