"""Fake quantisation, step by step as TensorFlow does it.

ONNX's QuantizeLinear rounds ties to even where TensorFlow rounds them up, and TensorRT takes no zero point, so a pair of
Q and DQ would not be the same function. TensorRT can't make int8 kernels of these steps: where int8 is asked for,
`precision/fake.py` finds them again and makes pairs with the same range of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from stages.translate.expand.call import Call, Result, Rule, Untranslatable

if TYPE_CHECKING:
    import tensorflow as tf

_F = np.float32
Floats: TypeAlias = "npt.NDArray[np.float32]"


def _fake(x: tf.Tensor, low: Floats, high: Floats, bits: int, narrow: bool, *, divide: bool) -> tf.Tensor:
    """Clamp to a range that zero lies in, and round to its steps (fake_quant_ops_functor.h). One of the three ops divides
    by the width of a step, where the others multiply by its inverse."""
    import tensorflow as tf

    least, most = _F(1 if narrow else 0), _F(2**bits - 1)
    width = np.where(high > low, high - low, _F(1)).astype(_F)
    scale, inverse = width / (most - least), (most - least) / width  # not 1 / scale: digits
    zero = np.clip(np.floor(least - low / scale + _F(0.5)), least, most)  # positive, so this is std::round
    start, end = (least - zero) * scale, (most - zero) * scale
    first = np.floor(-start * inverse + _F(0.5))
    shifted = tf.clip_by_value(x, start, end) - start
    steps = shifted / scale if divide else shifted * inverse
    result = tf.floor(steps - first + _F(0.5)) * scale
    empty = (low == 0) & (high == 0)
    return (
        tf.where(empty, tf.zeros_like(result), result) if empty.any() else result
    )  # TensorFlow's choice for such a range


def _fake_quant(call: Call) -> Result:
    bits, narrow = call.number("num_bits"), bool(call.attr("narrow_range"))
    if call.op.type == "FakeQuantWithMinMaxArgs":
        low, high = (np.asarray(call.attr(name), _F) for name in ("min", "max"))
    else:
        low, high = (call.known(index, "the range").astype(_F) for index in (1, 2))
    return _fake(call.real(0), low, high, bits, narrow, divide=call.op.type == "FakeQuantWithMinMaxVars")


def _quantize_and_dequantize(call: Call) -> Result:
    import tensorflow as tf

    x = call.real(0)
    axis = call.number("axis") if "axis" in call.op.node_def.attr else -1
    if not call.attr("range_given") or axis != -1 or x.dtype != tf.float32:
        raise Untranslatable(f"{call.op.type} without a given range, by axis or of {x.dtype.name} has no translation")
    low, high = _F(call.known(1, "the range")), _F(call.known(2, "the range"))
    bits = int(call.known(3, "the width")) if call.op.type.endswith("V3") else call.number("num_bits")
    narrow = bool(call.attr("narrow_range")) if "narrow_range" in call.op.node_def.attr else False
    if call.attr("signed_input"):
        least, most = -(2 ** (bits - 1)) + int(narrow), 2 ** (bits - 1) - 1
    else:
        least, most = 0, 2**bits - 1
    huge = np.finfo(_F).max
    from_low = _F(least) / low if least * low > 0 else huge
    from_high = _F(most) / high if most * high > 0 else huge
    if from_low < from_high:
        scale, step = from_low, low / _F(least)
        high = _F(most) * step
    else:
        scale, step = from_high, high / _F(most)
        low = _F(least) * step
    scaled = tf.clip_by_value(x, low, high) * scale
    even = not ("round_mode" in call.op.node_def.attr and call.op.get_attr("round_mode") == b"HALF_UP")
    return (tf.round(scaled) if even else tf.floor(scaled + _F(0.5))) * step


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("FakeQuantWithMinMaxArgs", "FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxVarsPerChannel"), _fake_quant
    ),
    **dict.fromkeys(
        ("QuantizeAndDequantizeV2", "QuantizeAndDequantizeV3", "QuantizeAndDequantizeV4"), _quantize_and_dequantize
    ),
}
