"""Element by element, and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.translate.expand.call import LEAVE, Call, Result, Rule, Untranslatable

if TYPE_CHECKING:
    import tensorflow as tf


def _zero_where(condition: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.where(condition, tf.constant(0, value.dtype), value)


def _div_no_nan(call: Call) -> Result:
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    return _zero_where(tf.equal(y, 0), x / y)


def _mul_no_nan(call: Call) -> Result:
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    return _zero_where(tf.equal(y, 0), x * y)


def _xdivy(call: Call) -> Result:
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    return _zero_where(tf.equal(x, 0), x / y)


def _xlogy(call: Call) -> Result:
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    return _zero_where(tf.equal(x, 0), x * tf.math.log(y))


def _xlog1py(call: Call) -> Result:
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    return _zero_where(tf.equal(x, 0), x * log1p(y))


def log1p(x: tf.Tensor) -> tf.Tensor:
    """log(1 + x); near zero, where 1 + x would lose digits, 2 artanh(x / (2 + x))."""
    import tensorflow as tf

    return tf.where(tf.abs(x) < 0.5, 2 * tf.atanh(x / (2 + x)), tf.math.log(1 + x))


def expm1(x: tf.Tensor) -> tf.Tensor:
    """exp(x) - 1 = tanh(x / 2) (exp(x) + 1), which loses no digits near zero."""
    import tensorflow as tf

    return tf.tanh(x / 2) * (tf.exp(x) + 1)


def _euclidean_norm(call: Call) -> Result:
    import tensorflow as tf

    x, axes = call.real(0), call.real(1)
    if not x.dtype.is_floating:
        raise Untranslatable(f"EuclideanNorm of {x.dtype.name} has no translation")
    return tf.sqrt(tf.reduce_sum(x * x, axes, keepdims=bool(call.attr("keep_dims"))))


def _bucketize(call: Call) -> Result:
    """How many boundaries are not above a value; all for NaN, which is below none."""
    import tensorflow as tf

    x = call.real(0)
    # TensorFlow compares in float32, whatever the input is.
    boundaries = np.asarray(call.attr("boundaries"), np.float32)
    below = tf.cast(x, tf.float32)[..., tf.newaxis] < boundaries
    return tf.reduce_sum(tf.cast(tf.logical_not(below), tf.int32), -1)


def _in_top_k(call: Call) -> Result:
    """Fewer than k predictions above the target's; false for rows that are not finite and targets out of range."""
    import tensorflow as tf

    predictions, targets = call.real(0), call.real(1)
    k = tf.cast(call.number("k") if call.op.type == "InTopK" else call.real(2), tf.int32)
    classes = tf.shape(predictions, out_type=targets.dtype)[1]
    legal = tf.logical_and(targets >= 0, targets < classes)
    safe = tf.where(legal, targets, tf.zeros_like(targets))
    chosen = tf.gather(predictions, safe[:, tf.newaxis], axis=1, batch_dims=1)
    above = tf.reduce_sum(tf.cast(predictions > chosen, tf.int32), 1)
    finite = tf.reduce_all(tf.abs(predictions) <= predictions.dtype.max, 1)
    return tf.logical_and(tf.logical_and(legal, finite), above < k)


def _bits(call: Call) -> Result:
    """And, or, xor: ONNX has them from opset 18 on, and TensorRT's parser refuses them, so bit by bit."""
    import tensorflow as tf

    dtype = call.op.outputs[0].dtype
    count = dtype.size * 8
    signed = dtype.min < 0
    if count == 64:
        raise Untranslatable(f"{call.op.type} of {dtype.name} has no translation")
    powers = np.int64(2) ** np.arange(count, dtype=np.int64)

    def bits(x: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.int64)[..., tf.newaxis]
        return tf.math.floormod(tf.math.floordiv(wide, powers), tf.constant(2, tf.int64))

    a, b = bits(call.real(0)), bits(call.real(1))
    if call.op.type == "BitwiseAnd":
        result = a * b
    elif call.op.type == "BitwiseOr":
        result = tf.maximum(a, b)
    else:
        result = tf.abs(a - b)
    weights = powers.copy()
    if signed:
        weights[-1] = -weights[-1]
    return tf.cast(tf.reduce_sum(result * weights, -1), dtype)


def _invert(call: Call) -> Result:
    import tensorflow as tf

    x = call.real(0)
    if x.dtype.min < 0:
        return -1 - x
    return tf.constant(x.dtype.max, x.dtype) - x


def _truncate_div(call: Call) -> Result:
    """tf2onnx takes it for a plain division."""
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    if x.dtype.is_integer:
        return LEAVE
    quotient = x / y
    return tf.where(quotient < 0, tf.math.ceil(quotient), tf.floor(quotient))


def _rank(call: Call) -> Result:
    import tensorflow as tf

    rank = call.op.inputs[0].shape.rank
    if rank is None:
        raise Untranslatable("Rank of a tensor of unknown rank")
    return tf.constant(rank, tf.int32)


def _shape_n(call: Call) -> Result:
    import tensorflow as tf

    kind = call.op.outputs[0].dtype
    return [tf.shape(call.real(i), out_type=kind) for i in range(len(call.inputs))]


def _lin_space(call: Call) -> Result:
    import tensorflow as tf

    start, stop = call.real(0), call.real(1)
    count = int(call.known(2, "the number of values"))
    if count == 1:
        return start[tf.newaxis]
    steps = tf.constant(np.arange(count - 1), start.dtype)
    delta = (stop - start) / (count - 1)
    return tf.concat([start + delta * steps, stop[tf.newaxis]], 0)


def _identity(call: Call) -> Result:
    return call.real(0)


def _l2_loss(call: Call) -> Result:
    import tensorflow as tf

    x = call.real(0)
    return tf.reduce_sum(x * x) / 2


def _approximate_equal(call: Call) -> Result:
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    return tf.abs(x - y) < tf.constant(call.attr("tolerance"), x.dtype)


def _sum_of_all(call: Call) -> Result:
    import tensorflow as tf

    return tf.add_n([call.real(i) for i in range(len(call.inputs))])


RULES: dict[str, Rule] = {
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), _bits),
    **dict.fromkeys(("InTopK", "InTopKV2"), _in_top_k),
    **dict.fromkeys(("Snapshot", "PreventGradient", "DebugGradientIdentity"), _identity),
    "AccumulateNV2": _sum_of_all,
    "ApproximateEqual": _approximate_equal,
    "Bucketize": _bucketize,
    "DivNoNan": _div_no_nan,
    "EuclideanNorm": _euclidean_norm,
    "Expm1": lambda call: expm1(call.real(0)),
    "Inv": lambda call: 1 / call.real(0),
    "Invert": _invert,
    "L2Loss": _l2_loss,
    "LinSpace": _lin_space,
    "Log1p": lambda call: log1p(call.real(0)),
    "MulNoNan": _mul_no_nan,
    "Rank": _rank,
    "ShapeN": _shape_n,
    "TruncateDiv": _truncate_div,
    "Xdivy": _xdivy,
    "Xlog1py": _xlog1py,
    "Xlogy": _xlogy,
}
