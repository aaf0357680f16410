"""Element by element, and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.translate.expand.call import LEAVE, Call, Result, Rule, Untranslatable

if TYPE_CHECKING:
    import tensorflow as tf


def _zero_where(condition: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.where(condition, tf.zeros([], value.dtype), value)


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
    return _zero_where(tf.equal(x, 0), x * _log(y))


def _xlog1py(call: Call) -> Result:
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    return _zero_where(tf.equal(x, 0), x * log1p(y))


def _log(x: tf.Tensor) -> tf.Tensor:
    """tf2onnx fails on logarithms of anything but float32."""
    import tensorflow as tf

    return tf.math.log(x) if x.dtype == tf.float32 else tf.cast(tf.math.log(tf.cast(x, tf.float32)), x.dtype)


def log1p(x: tf.Tensor) -> tf.Tensor:
    """log(1 + x); near zero, where 1 + x would lose digits, 2 artanh(x / (2 + x))."""
    import tensorflow as tf

    return tf.where(tf.abs(x) < 0.5, 2 * tf.atanh(x / (2 + x)), _log(1 + x))


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
    steps = tf.constant(np.arange(1, count - 1), start.dtype)
    delta = (stop - start) / (count - 1)
    return tf.concat([start[tf.newaxis], start + delta * steps, stop[tf.newaxis]], 0)


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
    """One after the other: ONNX's Sum takes no integers."""
    total = call.real(0)
    for i in range(1, len(call.inputs)):
        total += call.real(i)
    return total


def _floor_div(call: Call) -> Result:
    """tf2onnx rounds the quotient of integers towards zero."""
    import tensorflow as tf

    dtype = call.op.outputs[0].dtype
    if not dtype.is_integer:
        return LEAVE
    x, y = _wide(call.real(0)), _wide(call.real(1))
    # Truncated, less one where there is a rest and the signs differ: nothing that could overflow.
    rest = tf.raw_ops.TruncateMod(x=x, y=y)
    below = tf.logical_and(tf.not_equal(rest, 0), tf.not_equal(x < 0, y < 0))
    return tf.cast(tf.truncatediv(x, y) - tf.cast(below, x.dtype), dtype)


def _wide(x: tf.Tensor) -> tf.Tensor:
    """Small integers as int32: TensorRT divides no others."""
    import tensorflow as tf

    return x if x.dtype.size >= 4 else tf.cast(x, tf.int32)


def _truncate_mod(call: Call) -> Result:
    """Small integers as int32: TensorRT divides no others."""
    import tensorflow as tf

    dtype = call.op.outputs[0].dtype
    if not dtype.is_integer or dtype.size >= 4:
        return LEAVE
    return tf.cast(tf.truncatemod(_wide(call.real(0)), _wide(call.real(1))), dtype)


def _floor_mod(call: Call) -> Result:
    """tf2onnx computes x - floor(x / y) y, which loses the digits of large quotients; for floats as TensorFlow does it,
    integers by ONNX's Mod."""
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    dtype = x.dtype
    if dtype.is_integer:
        return LEAVE if dtype.size >= 4 else tf.cast(tf.math.floormod(_wide(x), _wide(y)), dtype)
    rest = tf.truncatemod(x, y)
    turned = tf.logical_and(tf.not_equal(rest, 0), tf.not_equal(y < 0, rest < 0))
    return tf.where(turned, rest + y, rest)


def _max_pool(call: Call) -> Result:
    """tf2onnx pools integers as float32."""
    dtype = call.op.outputs[0].dtype
    if dtype.is_integer and dtype.size >= 4:
        raise Untranslatable(f"{call.op.type} of {dtype.name} has no translation that is exact")
    return LEAVE


def _in_float32(argument: str) -> Rule:
    """The same op on float32, where tf2onnx fails on float16."""

    def rule(call: Call) -> Result:
        import tensorflow as tf

        x = call.real(0)
        if x.dtype == tf.float32 or not x.dtype.is_floating:
            return LEAVE
        wide = getattr(tf.raw_ops, call.op.type)(**{argument: tf.cast(x, tf.float32)})
        return tf.cast(wide, call.op.outputs[0].dtype)

    return rule


def _round(call: Call) -> Result:
    """TensorFlow's kernel gives 0 for integers, and TensorRT takes none."""
    if call.op.outputs[0].dtype.is_integer:
        raise Untranslatable("Round of integers has no translation")
    return LEAVE


def _shift(call: Call) -> Result:
    """By a power of two, rounded down: tf2onnx takes negative numbers for large ones. Shifts beyond the width are taken
    for the widest, as TensorFlow does."""
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    dtype = x.dtype
    powers = tf.constant(2 ** np.arange(min(dtype.size * 8, 63), dtype=np.int64))
    widest = dtype.size * 8 - 1
    if dtype.size == 8 and call.constant(1) is None:
        raise Untranslatable(f"{call.op.type} of {dtype.name} by a computed number of places")
    power = tf.gather(powers, tf.clip_by_value(tf.cast(y, tf.int32), 0, min(widest, 62)))
    wide = tf.cast(x, tf.int64)
    if call.op.type == "LeftShift":
        return tf.cast(wide * power, dtype)
    rest = tf.math.floormod(wide, power)
    return tf.cast(tf.truncatediv(wide - rest, power), dtype)


def _search(call: Call) -> Result:
    """How many of the sorted values lie below (or not above)."""
    import tensorflow as tf

    ordered, values = call.real(0)[:, tf.newaxis, :], call.real(1)[..., tf.newaxis]
    below = ordered < values if call.op.type == "LowerBound" else tf.logical_not(values < ordered)
    return tf.reduce_sum(tf.cast(below, call.op.outputs[0].dtype), -1)


def _cross(call: Call) -> Result:
    import tensorflow as tf

    a, b = (tf.unstack(call.real(i), axis=-1) for i in (0, 1))
    return tf.stack([a[i] * b[j] - a[j] * b[i] for i, j in ((1, 2), (2, 0), (0, 1))], -1)


def _nth(call: Call) -> Result:
    import tensorflow as tf

    x, n = call.real(0), int(call.known(1, "the number"))
    if not x.dtype.is_floating:
        raise Untranslatable(f"NthElement of {x.dtype.name} has no translation")
    if call.attr("reverse"):
        return tf.math.top_k(x, n + 1)[0][..., n]
    return -tf.math.top_k(-x, n + 1)[0][..., n]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), _bits),
    **dict.fromkeys(("InTopK", "InTopKV2"), _in_top_k),
    **dict.fromkeys(("Snapshot", "PreventGradient", "DebugGradientIdentity"), _identity),
    **dict.fromkeys(("AccumulateNV2", "AddN"), _sum_of_all),
    **dict.fromkeys(("MaxPool", "MaxPoolV2"), _max_pool),
    **dict.fromkeys(("Mod", "TruncateMod"), _truncate_mod),
    **dict.fromkeys(("IsFinite", "IsInf", "IsNan", "Log"), _in_float32("x")),
    **dict.fromkeys(("LeftShift", "RightShift"), _shift),
    **dict.fromkeys(("LowerBound", "UpperBound"), _search),
    "ApproximateEqual": _approximate_equal,
    "Bucketize": _bucketize,
    "Cross": _cross,
    "DivNoNan": _div_no_nan,
    "EuclideanNorm": _euclidean_norm,
    "Expm1": lambda call: expm1(call.real(0)),
    "FloorDiv": _floor_div,
    "FloorMod": _floor_mod,
    "Inv": lambda call: 1 / call.real(0),
    "Invert": _invert,
    "L2Loss": _l2_loss,
    "LinSpace": _lin_space,
    "Log1p": lambda call: log1p(call.real(0)),
    "MulNoNan": _mul_no_nan,
    "NthElement": _nth,
    "Rank": _rank,
    "Round": _round,
    "ShapeN": _shape_n,
    "TruncateDiv": _truncate_div,
    "Xdivy": _xdivy,
    "Xlog1py": _xlog1py,
    "Xlogy": _xlogy,
}
