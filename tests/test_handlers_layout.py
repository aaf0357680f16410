"""Values moved, scattered and added up by index, checked by running both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from stages.translate import translate
from tests.translation import assert_same, check, frozen, signal

INF, NAN = np.inf, np.nan


@pytest.mark.parametrize("mode", ["REFLECT", "SYMMETRIC"])
@pytest.mark.parametrize("open_axes", [False, True])
def test_mirror_padding(mode: str, open_axes: bool) -> None:
    spec = tf.TensorSpec((None, None, None, 3) if open_axes else (2, 5, 4, 3))
    graph = frozen(lambda x: tf.pad(x, [[0, 0], [1, 2], [3, 0], [0, 1]], mode), spec)
    assert_same(graph, graph[2], signal(2, 5, 4, 3))


@pytest.mark.parametrize("dtype", [tf.float16, tf.int32, tf.bool])
def test_padding_with_a_constant(dtype: tf.DType) -> None:
    value = tf.cast(1, dtype)
    check(lambda x: tf.pad(x, [[0, 0], [1, 2]], constant_values=value), np.ones((2, 3), dtype.as_numpy_dtype))


def test_rolling_over_several_axes() -> None:
    graph = frozen(
        lambda x: (tf.roll(x, [1, -2], [1, 2]), tf.roll(x, 7, -1), tf.roll(x, 0, 1)), tf.TensorSpec((None, 3, 5))
    )
    assert_same(graph, graph[2], signal(2, 3, 5))


@pytest.mark.parametrize("k", [-2, -1, 0, 1])
@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 3, 5)])
def test_diagonals(k: int, shape: tuple[int, ...]) -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        part = tf.linalg.diag_part(x, k=k)
        return part, tf.linalg.diag(part, k=k, padding_value=7.0), tf.linalg.set_diag(x, part * 2 + 1, k=k)

    check(function, signal(*shape))


def test_nothing_outside_a_band_comes_through() -> None:
    matrix = np.full((1, 3, 4), INF, np.float32)
    check(lambda x: [tf.linalg.band_part(x, *band) for band in ((0, 0), (-1, 1), (1, -1), (-1, -1))], matrix)
    graph = frozen(lambda x: tf.linalg.band_part(x, -1, 0), tf.TensorSpec((None, None)))
    assert_same(graph, graph[2], np.full((3, 3), NAN, np.float32))


def test_older_forms() -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        blocks = tf.raw_ops.SpaceToBatch(input=x, paddings=[[1, 1], [0, 0]], block_size=2)
        back = tf.raw_ops.BatchToSpace(input=blocks, crops=[[1, 1], [0, 0]], block_size=2)
        return blocks, back, tf.raw_ops.Reverse(tensor=x, dims=[False, True, False, True])

    check(function, signal(2, 4, 4, 3))


def test_diagonal_matrices() -> None:
    graph = frozen(
        lambda x: (tf.linalg.tensor_diag(x), tf.linalg.tensor_diag_part(x[:, tf.newaxis] * x)), tf.TensorSpec((4,))
    )
    assert_same(graph, graph[2], np.array([1, INF, -2, 3], np.float32))


@pytest.mark.parametrize("dtype", [tf.float32, tf.int32, tf.int64])
def test_repeated_indices_add_up(dtype: tf.DType) -> None:
    places = np.array([[0, 1], [2, 0], [0, 1], [1, 1]], np.int32)
    updates = (signal(4, 3) * 9).astype(dtype.as_numpy_dtype)
    check(lambda i, u: tf.scatter_nd(i, u, [3, 2, 3]), places, updates)


def test_infinity_stays_in_its_place_when_scattered() -> None:
    updates = np.array([[INF, 1], [NAN, 2], [-INF, 3], [4, 5]], np.float32)
    check(lambda i, u: tf.scatter_nd(i, u, [4, 2]), np.array([[0], [1], [3], [3]], np.int32), updates)


def test_constant_indices_without_repetition_become_one_node() -> None:
    graph = frozen(lambda u: tf.scatter_nd([[3], [0]], u, [5, 2]), tf.TensorSpec((2, 2)))
    translation = assert_same(graph, graph[2], signal(2, 2))
    assert "ScatterND" in {node.op_type for node in translation.model.graph.node}


def test_scatters_into_a_tensor() -> None:
    places = np.array([[1], [1], [3], [0]], np.int32)

    def function(i: tf.Tensor, u: tf.Tensor) -> list[tf.Tensor]:
        tensor = tf.reshape(tf.range(10.0), [5, 2]) / 5 - 1
        ops = (tf.tensor_scatter_nd_add, tf.tensor_scatter_nd_sub, tf.tensor_scatter_nd_max, tf.tensor_scatter_nd_min)
        return [op(tensor, i, u) for op in ops]

    check(function, places, signal(4, 2))


def test_a_scatter_that_looks_at_too_much_is_refused_by_name() -> None:
    specs = tf.TensorSpec((5000, 1), tf.int32), tf.TensorSpec((5000, 8))
    (found,) = translate(*frozen(lambda i, u: tf.scatter_nd(i, u, [1000, 8]), *specs)).unsupported
    assert found[1] == "ScatterNd"
    assert "too large" in found[2]


@pytest.mark.parametrize("dtype", [tf.float32, tf.int32])
def test_unsorted_segments_with_empty_and_negative_ids(dtype: tf.DType) -> None:
    ids = np.array([[3, 0, -1], [0, 3, 1]], np.int32)
    data = (signal(2, 3, 2) * 3).astype(dtype.as_numpy_dtype)
    ops = [tf.math.unsorted_segment_sum, tf.math.unsorted_segment_max, tf.math.unsorted_segment_min]
    ops.append(tf.math.unsorted_segment_prod)
    check(lambda d, i: [op(d, i, 5) for op in ops], data, ids)


def test_sorted_segments_of_known_ids() -> None:
    ids = tf.constant([0, 0, 2, 2, 2, 5])
    ops = (tf.math.segment_sum, tf.math.segment_mean, tf.math.segment_max, tf.math.segment_min, tf.math.segment_prod)
    graph = frozen(lambda d: [op(d, ids) for op in ops], tf.TensorSpec((6, 3)))
    assert_same(graph, graph[2], signal(6, 3))


def test_sparse_segments() -> None:
    ids, rows = tf.constant([0, 0, 1, 3]), np.array([2, 0, 0, 1], np.int32)
    ops = (tf.sparse.segment_sum, tf.sparse.segment_mean, tf.sparse.segment_sqrt_n)

    def function(data: tf.Tensor, indices: tf.Tensor) -> list[tf.Tensor]:
        return [op(data, indices, ids) for op in ops] + [op(data, indices, ids, num_segments=6) for op in ops]

    graph = frozen(function, tf.TensorSpec((None, 2)), tf.TensorSpec((4,), tf.int32))
    assert_same(graph, graph[2], signal(3, 2), rows)


@pytest.mark.parametrize("dtype", [tf.float32, tf.int64, tf.bool])
def test_sparse_values_made_dense(dtype: tf.DType) -> None:
    places = np.array([[0, 1], [1, 0], [2, 2]], np.int64)
    values = np.array([1, 0, 1], dtype.as_numpy_dtype)

    def function(p: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, ...]:
        one = tf.raw_ops.SparseToDense(
            sparse_indices=p,
            output_shape=tf.constant([3, 4], tf.int64),
            sparse_values=v,
            default_value=tf.cast(1, dtype),
        )
        row = tf.raw_ops.SparseToDense(
            sparse_indices=[1, 3], output_shape=[5], sparse_values=v[0], default_value=tf.cast(0, dtype)
        )
        return one, row

    check(function, places, values)


def test_stitched_rows_of_which_the_last_counts() -> None:
    def function(a: tf.Tensor, b: tf.Tensor) -> tuple[tf.Tensor, ...]:
        indices = [tf.constant([[0, 3], [1, 1]]), tf.constant([2, 0])]
        return tf.dynamic_stitch(indices, [a, b]), tf.raw_ops.ParallelDynamicStitch(
            indices=[[1], [0]], data=[b[:1], b[1:]]
        )

    graph = frozen(function, tf.TensorSpec((2, 2, 3)), tf.TensorSpec((2, 3)))
    assert_same(graph, graph[2], signal(2, 2, 3), signal(2, 3, seed=1))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_small_inverses_and_determinants(size: int) -> None:
    matrix = signal(5, size, size) + 3 * np.eye(size, dtype=np.float32)

    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tf.linalg.inv(x), tf.linalg.inv(x, adjoint=True), tf.linalg.det(x)

    check(function, matrix, tolerance=5e-5)


def test_recurrent_cell_of_one_op() -> None:
    weights = {"w_ru": signal(7, 8), "w_c": signal(7, 4, seed=1), "b_ru": signal(8, seed=2), "b_c": signal(4, seed=3)}
    check(lambda x, h: tuple(tf.raw_ops.GRUBlockCell(x=x, h_prev=h, **weights)), signal(3, 3), signal(3, 4, seed=4))


def test_a_value_that_only_sizes_decide_is_known() -> None:
    """Its axis and size are computed from known sizes; what depends on the open batch is not known."""

    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        size = tf.shape(x)
        return tf.roll(x, size[1] // 2, 1), tf.roll(x, size[0], 1)

    refused = translate(*frozen(function, tf.TensorSpec((None, 5)))).unsupported
    assert [(op, why) for _, op, why in refused] == [("Roll", "Roll: the shift is computed at run time")]


@pytest.mark.parametrize("op", [tf.math.cumprod, tf.math.cumulative_logsumexp])
def test_scans_along_an_axis(op: Callable[..., tf.Tensor]) -> None:
    def function(x: tf.Tensor) -> list[tf.Tensor]:
        ways = [(False, False), (False, True), (True, False), (True, True)]
        return [op(x, axis=1, exclusive=exclusive, reverse=reverse) for exclusive, reverse in ways]

    check(function, signal(2, 7, 3))
    check(function, np.array([[[0], [-INF], [3], [-INF], [INF]]], np.float32)[:, :4])


def test_ops_of_other_names() -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        solved = tf.linalg.solve(x + 9.0 * tf.eye(3), x[..., :2])
        product = tf.raw_ops.SparseMatMul(a=x[0], b=x[1], transpose_b=True)
        return solved, product, tf.raw_ops.ParallelConcat(values=[x[:1], x[1:]], shape=[2, 3, 3])

    graph = frozen(function, tf.TensorSpec((2, 3, 3)))
    assert_same(graph, graph[2], signal(2, 3, 3), tolerance=5e-5)
