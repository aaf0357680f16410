"""Whole numbers: bits, division, sizes, and counting what lies where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.translate.expand.call import LEAVE, Call, Result, Rule, Untranslatable

if TYPE_CHECKING:
    import tensorflow as tf


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


def _floor_div(call: Call) -> Result:
    """tf2onnx rounds the quotient of integers towards zero."""
    import tensorflow as tf

    dtype = call.op.outputs[0].dtype
    if not dtype.is_integer:
        return LEAVE
    x, y = wide(call.real(0)), wide(call.real(1))
    # Truncated, less one where there is a rest and the signs differ: nothing that could overflow.
    rest = tf.raw_ops.TruncateMod(x=x, y=y)
    below = tf.logical_and(tf.not_equal(rest, 0), tf.not_equal(x < 0, y < 0))
    return tf.cast(tf.truncatediv(x, y) - tf.cast(below, x.dtype), dtype)


def wide(x: tf.Tensor) -> tf.Tensor:
    """Small integers as int32: TensorRT divides no others."""
    import tensorflow as tf

    return x if x.dtype.size >= 4 else tf.cast(x, tf.int32)


def _truncate_mod(call: Call) -> Result:
    """Small integers as int32: TensorRT divides no others."""
    import tensorflow as tf

    dtype = call.op.outputs[0].dtype
    if not dtype.is_integer or dtype.size >= 4:
        return LEAVE
    return tf.cast(tf.truncatemod(wide(call.real(0)), wide(call.real(1))), dtype)


def _max_pool(call: Call) -> Result:
    """tf2onnx pools integers as float32."""
    dtype = call.op.outputs[0].dtype
    if dtype.is_integer and dtype.size >= 4:
        raise Untranslatable(f"{call.op.type} of {dtype.name} has no translation that is exact")
    return LEAVE


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


RULES: dict[str, Rule] = {
    **dict.fromkeys(("BitwiseAnd", "BitwiseOr", "BitwiseXor"), _bits),
    **dict.fromkeys(("InTopK", "InTopKV2"), _in_top_k),
    **dict.fromkeys(("LeftShift", "RightShift"), _shift),
    **dict.fromkeys(("LowerBound", "UpperBound"), _search),
    **dict.fromkeys(("MaxPool", "MaxPoolV2"), _max_pool),
    **dict.fromkeys(("Mod", "TruncateMod"), _truncate_mod),
    "Bucketize": _bucketize,
    "FloorDiv": _floor_div,
    "Invert": _invert,
    "Rank": _rank,
    "Round": _round,
    "ShapeN": _shape_n,
}
