"""Arithmetic that tf2onnx lacks or gets wrong, on values that behave oddly, checked by running both."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.translation import assert_same, check, frozen, signal

INF, NAN = np.inf, np.nan


def edges(*, negative: bool = True) -> np.ndarray:
    """Every pair of values that behave oddly, as two rows."""
    values = [0.0, 1e-20, 1e-7, 0.3, 0.5, 1.0, 7.5, 88.0, 3e38, INF, NAN, -0.0]
    values += [-value for value in values[1:-2]] if negative else []
    return np.array(np.meshgrid(values, values), np.float32).reshape(2, -1)


@pytest.mark.parametrize("op", ["DivNoNan", "MulNoNan", "Xdivy", "Xlogy", "Xlog1py", "TruncateDiv", "TruncateMod"])
def test_binary_ops_on_every_pair_of_edge_values(op: str) -> None:
    x, y = edges(negative="log" not in op)
    if op.startswith("Truncate"):
        x, y = (value[np.isfinite(x) & np.isfinite(y) & (np.abs(y) > 0.1) & (np.abs(x) < 100)] for value in (x, y))
    check(lambda a, b: getattr(tf.raw_ops, op)(x=a, y=b), x, y)


@pytest.mark.parametrize("op", ["Log1p", "Expm1", "Inv", "Erfc", "Rint", "Round", "Softplus", "Sign"])
def test_unary_ops_on_edge_values(op: str) -> None:
    values = np.unique(edges()[0])
    graph = frozen(
        lambda x: getattr(tf.raw_ops, op)(**{"features" if op == "Softplus" else "x": x}), tf.TensorSpec((None,))
    )
    assert_same(graph, graph[2], values, tolerance=1e-6)


@pytest.mark.parametrize("op", ["Log1p", "Expm1"])
def test_near_zero_no_digits_are_lost(op: str) -> None:
    graph = frozen(lambda x: getattr(tf.raw_ops, op)(x=x) * 1e12, tf.TensorSpec((None,)))
    assert_same(graph, graph[2], np.array([1e-12, -3e-10, 5e-8, 0.1], np.float32), tolerance=1e-6)


def test_what_is_not_selected_does_not_come_through() -> None:
    def function(x: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (
            tf.where(x > 0, tf.math.log(x), x),
            tf.raw_ops.Select(condition=rows, x=1 / x, y=x),
            tf.where(x > 0, x > 1, x < -1),
        )

    check(function, np.array([[0, -1], [INF, 2], [0, NAN]], np.float32), np.array([True, False, False]))


@pytest.mark.parametrize("dtype", [tf.int8, tf.uint8, tf.int32])
def test_bitwise_ops(dtype: tf.DType) -> None:
    low, high = dtype.min, dtype.max
    x = np.array([low, high, 0, 1, 77, high - 5, max(low, -9)], dtype.as_numpy_dtype)[:, np.newaxis]
    y = np.array([high, low, 3, 100, 0, max(low, -4)], dtype.as_numpy_dtype)[np.newaxis]
    spec = tf.TensorSpec((None, None), dtype)
    graph = frozen(
        lambda a, b: (
            tf.bitwise.bitwise_and(a, b),
            tf.bitwise.bitwise_or(a, b),
            tf.bitwise.bitwise_xor(a, b),
            tf.bitwise.invert(a),
        ),
        spec,
        spec,
    )
    assert_same(graph, graph[2], x, y)


@pytest.mark.parametrize("dtype", [tf.float32, tf.int32, tf.int64])
def test_buckets_include_their_lower_boundary(dtype: tf.DType) -> None:
    values = [[-1, 0, 1], [10, 9, 11]] if dtype.is_integer else [[-1, 0, 9.999], [INF, NAN, 10]]
    check(lambda x: tf.raw_ops.Bucketize(input=x, boundaries=[0, 1.5, 10]), np.array(values, dtype.as_numpy_dtype))


@pytest.mark.parametrize("k", [0, 1, 2, 9])
def test_in_top_k_with_ties_and_odd_values(k: int) -> None:
    predictions = np.array([[1, 3, 2], [1, 1, 1], [NAN, 2, 1], [INF, 0, 1], [5, 5, 1], [1, 2, 3]], np.float32)
    targets = np.array([1, 2, 1, 1, 0, 9], np.int32)
    check(lambda p, t: tf.raw_ops.InTopKV2(predictions=p, targets=t, k=k), predictions, targets)


def test_norms_losses_and_sizes() -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        sizes = tf.raw_ops.ShapeN(input=[x, x[0]], out_type=tf.int64)
        line = tf.raw_ops.LinSpace(start=x[0, 0], stop=x[1, 1], num=5)
        close = tf.raw_ops.ApproximateEqual(x=x, y=x + 1e-6, tolerance=1e-4)
        norm = tf.raw_ops.EuclideanNorm(input=x, axis=[1], keep_dims=True)
        return norm, tf.nn.l2_loss(x), *sizes, line, close, tf.rank(x) + tf.shape(x)[0]

    check(function, signal(3, 4))


@pytest.mark.parametrize("dtype", [tf.int8, tf.uint8, tf.int32, tf.int64])
@pytest.mark.parametrize("op", ["FloorDiv", "FloorMod", "TruncateDiv", "TruncateMod"])
def test_integer_division_of_extremes(op: str, dtype: tf.DType) -> None:
    if (dtype == tf.uint8 and op == "TruncateMod") or (dtype.size == 1 and op == "TruncateMod"):
        pytest.skip("TensorFlow has no such op")
    low, high = dtype.min, dtype.max
    x = np.array([low, low + 1, high, high - 1, 7, 0, 100], dtype.as_numpy_dtype)[:, np.newaxis]
    y = np.array([3, high, 10, 1, *((-3, low, -10) if low else ())], dtype.as_numpy_dtype)[np.newaxis]
    graph = frozen(lambda a, b: getattr(tf.raw_ops, op)(x=a, y=b), *[tf.TensorSpec((None, None), dtype)] * 2)
    assert_same(graph, graph[2], x, y)


@pytest.mark.parametrize("dtype", [tf.int8, tf.uint8, tf.int32, tf.int64])
def test_shifts_keep_the_sign_and_know_the_width(dtype: tf.DType) -> None:
    x = np.array([dtype.min, dtype.max, 1, 7, 0, dtype.min + 9], dtype.as_numpy_dtype)
    places = [0, 1, 3, dtype.size * 8 - 2]

    def function(value: tf.Tensor) -> list[tf.Tensor]:
        right = [tf.bitwise.right_shift(value, tf.cast(n, dtype)) for n in places]
        return [*right, tf.bitwise.left_shift(value // 8, tf.cast(2, dtype))]

    check(function, x)


def test_shift_by_a_computed_number() -> None:
    x = np.array([-100, 7, 2**30, -(2**31)], np.int32)
    check(tf.bitwise.right_shift, x, np.array([3, 1, 30, 31], np.int32))


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_large_integers_are_ordered_exactly(dtype: tf.DType) -> None:
    """tf2onnx makes them float32."""
    first = 2**24 if dtype == tf.int32 else 2**53
    rows = np.array([[first, first + 1, first - 1, -first - 1]], dtype.as_numpy_dtype)
    check(lambda x: tf.math.top_k(x, 3), rows)


def test_sums_of_many_and_of_integers() -> None:
    check(lambda x: (tf.add_n([x, x, x * 2]), tf.add_n([x])), np.array([[2**30, -7]], np.int32))


@pytest.mark.parametrize("op", ["Log", "Log1p", "Expm1", "IsInf", "IsFinite", "IsNan"])
def test_half_precision(op: str) -> None:
    values = np.array([0.5, 1, 100, 0.001, 65504, INF, NAN], np.float16)
    check(lambda x: getattr(tf.raw_ops, op)(x=x), values, tolerance=2e-3)


def test_sorted_search_with_ties() -> None:
    ordered = np.array([[1, 3, 3, 5], [2, 2, 2, 2]], np.float32)
    values = np.array([[0, 3, 4, 9], [2, 1, 3, NAN]], np.float32)
    check(lambda s, v: (tf.searchsorted(s, v), tf.searchsorted(s, v, "right")), ordered, values)


def test_small_numeric_ops() -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        nth = (tf.raw_ops.NthElement(input=x, n=1), tf.raw_ops.NthElement(input=x, n=0, reverse=True))
        where = tf.unravel_index(tf.cast(tf.abs(x[:, 0]) * 5, tf.int32), [4, 3, 5])
        return tf.linalg.cross(x, x[:, ::-1]), *nth, where

    check(function, signal(4, 3))


def test_bucket_counts() -> None:
    numbers = np.array([[0, 3, 3, 9], [1, 1, 4, 0]], np.int32)
    weights = signal(2, 4)
    nothing = tf.constant([], tf.int64)

    def function(x: tf.Tensor, w: tf.Tensor) -> tuple[tf.Tensor, ...]:
        rows = tf.raw_ops.DenseBincount(input=x, size=5, weights=w)
        seen = tf.raw_ops.DenseBincount(input=x, size=5, weights=nothing, binary_output=True)
        return rows, seen, tf.raw_ops.Bincount(arr=x, size=5, weights=w)

    check(function, numbers, weights)
