"""Estimates of work: by hand, and against TensorFlow's own table of FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from fixtures import cuts, stateful, vision
from fixtures.example import Example
from stages.artifacts import FrozenGraph, Source, Tensor
from stages.freeze import freeze
from stages.graph import Graph
from stages.work import Work, estimate_work

F32 = tf.float32


def works(tmp_path: Path, function: Callable[..., object], *specs: tf.TensorSpec, batch: int = 1) -> dict[str, Work]:
    """Work by op type of a function with one op of each type that matters; open axes take the size `batch`."""
    frozen = freeze(tf.function(function, input_signature=specs), tmp_path / "frozen")
    graph = Graph(frozen)
    sizes = {t.name: [batch if axis is None else axis for axis in t.shape or ()] for t in frozen.inputs}
    types = {node.name: node.op for node in graph.nodes}
    return {types[name]: work for name, work in estimate_work(graph, sizes).items()}


def test_a_matrix_product_counts_two_for_each_multiply_add_and_all_it_reads_and_writes(tmp_path: Path) -> None:
    kernel = tf.ones([4, 3])
    work = works(tmp_path, lambda x: tf.nn.relu(tf.matmul(x, kernel)), tf.TensorSpec([None, 4], F32), batch=5)
    assert work["MatMul"] == Work(2 * 5 * 4 * 3, 4 * (5 * 4 + 4 * 3 + 5 * 3))
    assert work["Relu"] == Work(5 * 3, 4 * 2 * 5 * 3)


def test_transposed_products_contract_the_right_axis(tmp_path: Path) -> None:
    specs = tf.TensorSpec([7, 4], F32), tf.TensorSpec([7, 3], F32)
    assert works(tmp_path, lambda a, b: tf.matmul(a, b, transpose_a=True), *specs)["MatMul"].flops == 2 * 4 * 3 * 7


@pytest.mark.parametrize(
    ("equation", "a", "b", "flops"),
    [
        ("bij,bjk->bik", (2, 3, 4), (2, 4, 5), 2 * 2 * 3 * 4 * 5),
        ("...ij,jk->...ik", (2, 6, 3, 4), (4, 5), 2 * 2 * 6 * 3 * 4 * 5),
        ("abc,cd->abd", (2, 3, 4), (4, 5), 2 * 2 * 3 * 4 * 5),
    ],
)
def test_einsum_counts_every_combination_of_indices(
    tmp_path: Path, equation: str, a: tuple[int, ...], b: tuple[int, ...], flops: int
) -> None:
    specs = tf.TensorSpec(a, F32), tf.TensorSpec(b, F32)
    assert works(tmp_path, lambda x, y: tf.einsum(equation, x, y), *specs)["Einsum"].flops == flops


def test_grouped_and_transposed_convolutions(tmp_path: Path) -> None:
    def model(x: tf.Tensor) -> tf.Tensor:
        grouped = tf.nn.conv2d(x, tf.ones([3, 3, 2, 8]), 1, "SAME")
        deep = tf.nn.depthwise_conv2d(grouped, tf.ones([3, 3, 8, 1]), [1, 1, 1, 1], "SAME")
        return tf.nn.conv2d_transpose(deep, tf.ones([2, 2, 5, 8]), [1, 16, 16, 5], 2)

    work = works(tmp_path, model, tf.TensorSpec([1, 8, 8, 4], F32))
    assert work["Conv2D"].flops == 2 * 64 * 8 * 3 * 3 * 2
    assert work["DepthwiseConv2dNative"].flops == 2 * 64 * 8 * 9
    assert work["Conv2DBackpropInput"].flops == 2 * 64 * 8 * 2 * 2 * 5


def test_views_move_nothing_and_gathering_reads_what_it_gives(tmp_path: Path) -> None:
    table = tf.ones([1000, 4])
    work = works(
        tmp_path, lambda i: tf.reshape(tf.gather(table, i), [3, 2, 2]), tf.TensorSpec([3], tf.int32, name="indices")
    )
    assert work["Reshape"] == Work(0, 0)
    assert work["GatherV2"].flops == 0
    assert work["GatherV2"].bytes < 200


def test_what_depends_on_data_is_marked_as_assumed(tmp_path: Path) -> None:
    work = works(tmp_path, lambda x: tf.nn.relu(tf.boolean_mask(x, x > 0)) + 1.0, tf.TensorSpec([8], F32))
    assert not work["Relu"].exact
    assert work["Greater"].exact


def test_a_loop_counts_as_one_turn_of_its_body(tmp_path: Path) -> None:
    graph = Graph(freeze(str(vision.conv_loop().save(tmp_path / "model")), tmp_path / "frozen"))
    loop = next(node.name for node in graph.nodes if node.op in ("While", "StatelessWhile"))
    work = estimate_work(graph, {t.name: [2, 8, 8, 4] for t in graph.frozen.inputs})[loop]
    convolution = 2 * (2 * 8 * 8 * 4) * 3 * 3 * 4
    assert convolution < work.flops < 1.1 * convolution
    assert not work.exact


def test_loops_in_loops_and_branches_count_too(tmp_path: Path) -> None:
    kernel = tf.ones([4, 4])

    def inner(x: tf.Tensor) -> tf.Tensor:
        return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, tf.matmul(y, kernel)), (0, x))[1]

    def model(x: tf.Tensor) -> tf.Tensor:
        looped = tf.while_loop(lambda i, _: i < 2, lambda i, y: (i + 1, inner(y)), (0, x))[1]
        return tf.cond(looped[0, 0] > 0, lambda: tf.matmul(looped, kernel), lambda: looped)

    work = works(tmp_path, model, tf.TensorSpec([5, 4], F32))
    product = 2 * 5 * 4 * 4
    loop, branch = (next(found for op, found in work.items() if op.endswith(kind)) for kind in ("While", "If"))
    assert product <= loop.flops < product + 10
    assert product <= branch.flops < product + 10
    assert not branch.exact


def test_shapes_recorded_for_another_size_do_not_count(tmp_path: Path) -> None:
    graph_def = tf.compat.v1.GraphDef()
    graph_def.versions.producer = 2000
    x = graph_def.node.add(name="x", op="Placeholder")
    x.attr["dtype"].type = tf.float32.as_datatype_enum
    x.attr["shape"].shape.CopyFrom(tf.TensorShape([None, 4]).as_proto())
    y = graph_def.node.add(name="y", op="Relu", input=["x"])
    y.attr["T"].type = tf.float32.as_datatype_enum
    y.attr["_output_shapes"].list.shape.append(tf.TensorShape([2, 4]).as_proto())
    (tmp_path / "graph.pb").write_bytes(graph_def.SerializeToString())
    ends = (Tensor("x:0", "float32", (None, 4)),), (Tensor("y:0", "float32", (2, 4)),)
    graph = Graph(FrozenGraph(tmp_path, Source("graph_def", None), *ends, ("x",), ("y",)))
    assert estimate_work(graph, {"x:0": [3, 4]}) == {"y": Work(12, 96)}


@pytest.mark.parametrize(
    "example",
    [cuts.set_shape, stateful.table_front_end, vision.unknown_rank, vision.zero_size],
    ids=lambda f: f.__name__,
)
def test_every_computing_op_of_awkward_graphs_has_an_estimate(tmp_path: Path, example: Callable[[], Example]) -> None:
    model = example()
    graph = Graph(freeze(str(model.save(tmp_path / "model")), tmp_path / "frozen"))
    names = zip(graph.frozen.input_names, graph.frozen.inputs, strict=True)
    work = estimate_work(graph, {tensor.name: model.inputs[name].shape for name, tensor in names})
    assert set(work) == {graph.nodes[i].name for i in graph.computing()}
    assert all(estimate.flops >= 0 and estimate.bytes >= 0 for estimate in work.values())
    assert sum(estimate.bytes for estimate in work.values()) > 0


def test_convolutions_and_products_agree_with_tensorflows_own_table(tmp_path: Path) -> None:
    from tensorflow.python.framework import ops
    from tensorflow.python.profiler.internal import flops_registry  # noqa: F401 - registers the table

    graph = Graph(freeze(vision.small_cnn(), tmp_path / "frozen"))
    (image,) = graph.frozen.inputs
    ours = estimate_work(graph, {image.name: [2, 16, 16, 3]})
    fixed = graph.frozen.graph_def()
    for node in fixed.node:
        if node.name == image.name.split(":")[0]:
            node.attr["shape"].shape.CopyFrom(tf.TensorShape([2, 16, 16, 3]).as_proto())
    with tf.Graph().as_default() as imported:
        tf.graph_util.import_graph_def(fixed, name="")
        for op in imported.get_operations():
            if op.type in ("Conv2D", "MatMul", "Relu", "AddV2", "Mul", "BiasAdd") and op.name in ours:
                expected = ops.get_stats_for_node_def(imported, op.node_def, "flops").value
                assert expected is None or ours[op.name].flops == expected, op.type
    assert sum(work.flops for work in ours.values()) > 1000
