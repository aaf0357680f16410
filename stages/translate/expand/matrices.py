"""Small matrices, written out; products along an axis; ops that are several others in one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.translate.expand.arithmetic import log1p
from stages.translate.expand.call import Call, Result, Rule, Untranslatable

if TYPE_CHECKING:
    import tensorflow as tf

_LARGEST = 3


def _entries(call: Call) -> list[list[tf.Tensor]]:
    """The matrix by rows and columns.

    Raises:
        Untranslatable: it is larger than can be written out without losing digits.
    """
    size = call.size(0, -1)
    if size > _LARGEST or size < 1:
        raise Untranslatable(f"{call.op.type} of matrices of {size} rows has no translation")
    matrix = call.real(0)
    return [[matrix[..., i, j] for j in range(size)] for i in range(size)]


def _minor(m: list[list[tf.Tensor]], row: int, column: int) -> list[list[tf.Tensor]]:
    return [[value for j, value in enumerate(line) if j != column] for i, line in enumerate(m) if i != row]


def _determinant(m: list[list[tf.Tensor]]) -> tf.Tensor:
    if len(m) == 1:
        return m[0][0]
    total = m[0][0] * _determinant(_minor(m, 0, 0))
    for column in range(1, len(m)):
        total += (-1) ** column * m[0][column] * _determinant(_minor(m, 0, column))
    return total


def _matrix_determinant(call: Call) -> Result:
    return _determinant(_entries(call))


def _inverse(call: Call) -> tf.Tensor:
    """The adjugate over the determinant. A singular matrix gives infinity or NaN where TensorFlow raises an error."""
    import tensorflow as tf

    m = _entries(call)
    size, determinant = len(m), _determinant(m)
    adjoint = bool(call.attr("adjoint"))

    def entry(i: int, j: int) -> tf.Tensor:
        if size == 1:
            return 1 / determinant
        row, column = (i, j) if adjoint else (j, i)
        return (-1) ** (i + j) * _determinant(_minor(m, row, column)) / determinant

    return tf.stack([tf.stack([entry(i, j) for j in range(size)], -1) for i in range(size)], -2)


def _matrix_inverse(call: Call) -> Result:
    return _inverse(call)


def _matrix_solve(call: Call) -> Result:
    import tensorflow as tf

    return tf.matmul(_inverse(call), call.real(1))


def _scan(call: Call) -> Result:
    """Cumprod and CumulativeLogsumexp: every place takes in those 1, 2, 4, … before it. TensorRT fails to build the Loop
    that tf2onnx makes of Cumprod."""
    import tensorflow as tf

    x, axis = call.real(0), int(call.known(1, "the axis")) % call.op.inputs[0].shape.rank
    size = call.size(0, axis)
    product = call.op.type == "Cumprod"
    neutral = tf.constant(1, x.dtype) if product else tf.constant(-np.inf, x.dtype)

    def shifted(value: tf.Tensor, by: int) -> tf.Tensor:
        pads = [[0, 0]] * x.shape.rank
        pads[axis] = [by, 0]
        kept = value[(*(slice(None),) * axis, slice(None, size - by))]
        return tf.pad(kept, pads, constant_values=neutral)

    x = tf.reverse(x, [axis]) if call.attr("reverse") else x
    if call.attr("exclusive") and size:
        x = shifted(x, 1)
    step = 1
    while step < size:
        before = shifted(x, step)
        x = x * before if product else _log_add(x, before)
        step *= 2
    return tf.reverse(x, [axis]) if call.attr("reverse") else x


def _log_add(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    large, gap = tf.maximum(a, b), tf.abs(a - b)
    # Both -inf: their gap is NaN, and so it must not count.
    return tf.where(tf.equal(a, b), a + np.log(2).astype(a.dtype.as_numpy_dtype), large + log1p(tf.exp(-gap)))


def _parallel_concat(call: Call) -> Result:
    import tensorflow as tf

    return tf.concat([call.real(i) for i in range(len(call.inputs))], 0)


def _sparse_matmul(call: Call) -> Result:
    """A matrix product; only its kernel looks for zeros."""
    import tensorflow as tf

    a, b = (tf.cast(call.real(i), tf.float32) for i in (0, 1))
    return tf.matmul(a, b, bool(call.attr("transpose_a")), bool(call.attr("transpose_b")))


def _gru_cell(call: Call) -> Result:
    """One step of a GRU whose gates are reset, then update: r, u, c, h."""
    import tensorflow as tf

    x, state, gates, candidate, gate_bias, candidate_bias = (call.real(i) for i in range(6))
    reset, update = tf.split(tf.sigmoid(tf.matmul(tf.concat([x, state], 1), gates) + gate_bias), 2, 1)
    new = tf.tanh(tf.matmul(tf.concat([x, state * reset], 1), candidate) + candidate_bias)
    return [reset, update, new, update * state + (1 - update) * new]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Cumprod", "CumulativeLogsumexp"), _scan),
    "GRUBlockCell": _gru_cell,
    "MatrixDeterminant": _matrix_determinant,
    "MatrixInverse": _matrix_inverse,
    "MatrixSolve": _matrix_solve,
    "ParallelConcat": _parallel_concat,
    "SparseMatMul": _sparse_matmul,
}
