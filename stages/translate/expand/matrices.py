"""Small matrices, written out; and a recurrent cell that is one op."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def _matrix_inverse(call: Call) -> Result:
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


def _gru_cell(call: Call) -> Result:
    """One step of a GRU whose gates are reset, then update: r, u, c, h."""
    import tensorflow as tf

    x, state, gates, candidate, gate_bias, candidate_bias = (call.real(i) for i in range(6))
    reset, update = tf.split(tf.sigmoid(tf.matmul(tf.concat([x, state], 1), gates) + gate_bias), 2, 1)
    new = tf.tanh(tf.matmul(tf.concat([x, state * reset], 1), candidate) + candidate_bias)
    return [reset, update, new, update * state + (1 - update) * new]


RULES: dict[str, Rule] = {
    "GRUBlockCell": _gru_cell,
    "MatrixDeterminant": _matrix_determinant,
    "MatrixInverse": _matrix_inverse,
}
