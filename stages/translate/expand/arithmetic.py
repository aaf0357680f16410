"""Floats, element by element, and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.translate.expand.call import LEAVE, Call, Result, Rule, Untranslatable
from stages.translate.expand.integers import wide

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


def _truncate_div(call: Call) -> Result:
    """tf2onnx takes it for a plain division."""
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    if x.dtype.is_integer:
        return LEAVE
    quotient = x / y
    return tf.where(quotient < 0, tf.math.ceil(quotient), tf.floor(quotient))


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


def _floor_mod(call: Call) -> Result:
    """tf2onnx computes x - floor(x / y) y, which loses the digits of large quotients; for floats as TensorFlow does it,
    integers by ONNX's Mod."""
    import tensorflow as tf

    x, y = call.real(0), call.real(1)
    dtype = x.dtype
    if dtype.is_integer:
        return LEAVE if dtype.size >= 4 else tf.cast(tf.math.floormod(wide(x), wide(y)), dtype)
    rest = tf.truncatemod(x, y)
    turned = tf.logical_and(tf.not_equal(rest, 0), tf.not_equal(y < 0, rest < 0))
    return tf.where(turned, rest + y, rest)


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
    **dict.fromkeys(("Snapshot", "PreventGradient", "DebugGradientIdentity"), _identity),
    **dict.fromkeys(("AccumulateNV2", "AddN"), _sum_of_all),
    **dict.fromkeys(("IsFinite", "IsInf", "IsNan", "Log"), _in_float32("x")),
    "ApproximateEqual": _approximate_equal,
    "Cross": _cross,
    "DivNoNan": _div_no_nan,
    "EuclideanNorm": _euclidean_norm,
    "Expm1": lambda call: expm1(call.real(0)),
    "FloorMod": _floor_mod,
    "Inv": lambda call: 1 / call.real(0),
    "L2Loss": _l2_loss,
    "LinSpace": _lin_space,
    "Log1p": lambda call: log1p(call.real(0)),
    "MulNoNan": _mul_no_nan,
    "NthElement": _nth,
    "TruncateDiv": _truncate_div,
    "Xdivy": _xdivy,
    "Xlog1py": _xlog1py,
    "Xlogy": _xlogy,
}
