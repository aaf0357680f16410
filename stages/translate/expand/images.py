"""Resizing and colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.compare import Array
from stages.translate.expand.call import LEAVE, Call, Result, Rule, Untranslatable

if TYPE_CHECKING:
    import tensorflow as tf


def _nearest(call: Call) -> Result:
    """The nearest pixel by half-pixel centres, which TensorRT's parser refuses: a gather, or for a whole multiple the
    same as without half pixels."""
    import tensorflow as tf

    if not call.attr("half_pixel_centers"):
        return LEAVE
    image = call.real(0)
    sizes = [int(size) for size in call.known(1, "the size")]
    given = [call.size(0, 1), call.size(0, 2)]
    if all(new % old == 0 for new, old in zip(sizes, given, strict=True)):
        return tf.raw_ops.ResizeNearestNeighbor(images=image, size=sizes)
    for axis, old, new in zip((1, 2), given, sizes, strict=True):
        # In float32, as TensorFlow does it.
        places = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * (np.float32(old) / np.float32(new))
        image = tf.gather(image, np.minimum(np.floor(places), old - 1).astype(np.int32), axis=axis)
    return image


def _mixing(call: Call, old: int, new: int, axis: int) -> Array:
    """How a resize mixes the pixels of one axis, (new, old): TensorFlow itself resizes the unit vectors."""
    import tensorflow as tf

    sizes, pixels = [1, 1], [1, 1]
    sizes[axis], pixels[axis] = new, old
    given = {attr.name for attr in call.op.op_def.attr} - {"T"}
    attrs = {name: call.attr(name) for name in given}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        units = tf.constant(np.eye(old, dtype=np.float32).reshape(1, *pixels, old))
        if call.op.type == "ScaleAndTranslate":
            scale, shift = [1.0, 1.0], [0.0, 0.0]
            scale[axis] = float(call.known(2, "the scale")[axis])
            shift[axis] = float(call.known(3, "the translation")[axis])
            attrs |= {"scale": scale, "translation": shift}
        mixed = getattr(tf.raw_ops, call.op.type)(images=units, size=sizes, **attrs)
        weights: Array = session.run(mixed).reshape(new, old)
    return weights


def _separable(call: Call) -> Result:
    """A resize in which both axes are mixed one after the other, as two matrix products."""
    import tensorflow as tf

    image = tf.cast(call.real(0), tf.float32)
    sizes = [int(size) for size in call.known(1, "the size")]
    height, width, channels = (call.size(0, axis) for axis in (1, 2, 3))
    columns, rows = _mixing(call, width, sizes[1], 1), _mixing(call, height, sizes[0], 0)
    image = tf.matmul(tf.constant(columns), image)
    image = tf.matmul(tf.constant(rows), tf.reshape(image, [-1, height, sizes[1] * channels]))
    return tf.reshape(image, [-1, *sizes, channels])


def _bilinear(call: Call) -> Result:
    """TensorFlow computes it in float32, whatever the image is; tf2onnx in the image's dtype."""
    import tensorflow as tf

    image = call.real(0)
    if image.dtype == tf.float32:
        return LEAVE
    attrs = {name: call.attr(name) for name in ("align_corners", "half_pixel_centers")}
    return tf.raw_ops.ResizeBilinear(images=tf.cast(image, tf.float32), size=call.real(1), **attrs)


def _crop_and_resize(call: Call) -> Result:
    """Four gathers, or one for the nearest pixel."""
    import tensorflow as tf

    image, boxes, owners = tf.cast(call.real(0), tf.float32), call.real(1), call.real(2)
    crop = [int(size) for size in call.known(3, "the size")]
    sizes = tf.shape(image)
    outside = tf.constant(call.attr("extrapolation_value"), tf.float32)
    channels = call.size(0, 3)

    def places(axis: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Where along an axis each pixel of a crop lies, (boxes, crop), and whether that is inside."""
        last = tf.cast(sizes[axis + 1] - 1, tf.float32)
        low, high = boxes[:, axis, tf.newaxis], boxes[:, axis + 2, tf.newaxis]
        if crop[axis] > 1:
            step = (high - low) * last / (crop[axis] - 1)
            found = low * last + tf.constant(np.arange(crop[axis]), tf.float32) * step
        else:
            found = 0.5 * (low + high) * last
        return found, tf.logical_and(found >= 0, found <= last)

    (y, y_inside), (x, x_inside) = places(0), places(1)
    flat = tf.reshape(image, [-1, channels])

    def pixels(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        row = tf.cast(tf.clip_by_value(row, 0.0, tf.cast(sizes[1] - 1, tf.float32)), tf.int32)
        column = tf.cast(tf.clip_by_value(column, 0.0, tf.cast(sizes[2] - 1, tf.float32)), tf.int32)
        first = (owners[:, tf.newaxis] * sizes[1] + row) * sizes[2]
        return tf.gather(flat, first[:, :, tf.newaxis] + column[:, tf.newaxis, :])

    if call.op.get_attr("method") == b"nearest":
        # roundf: halves away from zero.
        mixed = pixels(tf.floor(y + 0.5), tf.floor(x + 0.5))
    else:
        down, right = (y - tf.floor(y))[:, :, tf.newaxis, tf.newaxis], (x - tf.floor(x))[:, tf.newaxis, :, tf.newaxis]
        top = pixels(tf.floor(y), tf.floor(x))
        top += (pixels(tf.floor(y), tf.math.ceil(x)) - top) * right
        bottom = pixels(tf.math.ceil(y), tf.floor(x))
        bottom += (pixels(tf.math.ceil(y), tf.math.ceil(x)) - bottom) * right
        mixed = top + (bottom - top) * down
    inside = tf.logical_and(y_inside[:, :, tf.newaxis], x_inside[:, tf.newaxis, :])
    return tf.where(inside[..., tf.newaxis], mixed, outside)


def _to_hsv(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    import tensorflow as tf

    red, green, blue = tf.unstack(image, axis=-1)
    value, least = tf.maximum(tf.maximum(red, green), blue), tf.minimum(tf.minimum(red, green), blue)
    span = value - least
    zero = tf.zeros_like(span)
    saturation = tf.where(value > 0, span / tf.where(value > 0, value, 1 + zero), zero)
    norm = 1 / (6 * tf.where(span > 0, span, 1 + zero))
    hue = tf.where(
        tf.equal(red, value),
        norm * (green - blue),
        tf.where(tf.equal(green, value), norm * (blue - red) + 2.0 / 6.0, norm * (red - green) + 4.0 / 6.0),
    )
    hue = tf.where(span > 0, hue, zero)
    return tf.where(hue < 0, hue + 1, hue), saturation, value


def _to_rgb(hue: tf.Tensor, saturation: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    def channel(shift: float, sign: float) -> tf.Tensor:
        part = tf.clip_by_value(sign * (tf.abs(hue * 6 - 3) - shift), 0.0, 1.0)
        return ((1 - saturation) + saturation * part) * value

    def far(centre: float) -> tf.Tensor:
        part = tf.clip_by_value(2 - tf.abs(hue * 6 - centre), 0.0, 1.0)
        return ((1 - saturation) + saturation * part) * value

    return tf.stack([channel(1.0, 1.0), far(2.0), far(4.0)], -1)


def _rgb_to_hsv(call: Call) -> Result:
    import tensorflow as tf

    return tf.stack(_to_hsv(call.real(0)), -1)


def _hsv_to_rgb(call: Call) -> Result:
    import tensorflow as tf

    return _to_rgb(*tf.unstack(call.real(0), axis=-1))


def _adjust_hue(call: Call) -> Result:
    import tensorflow as tf

    image, delta = call.real(0), call.real(1)
    hue, saturation, value = _to_hsv(tf.cast(image, tf.float32))
    turned = hue + delta
    return tf.cast(_to_rgb(turned - tf.floor(turned), saturation, value), image.dtype)


def _adjust_saturation(call: Call) -> Result:
    import tensorflow as tf

    image, scale = call.real(0), call.real(1)
    hue, saturation, value = _to_hsv(tf.cast(image, tf.float32))
    return tf.cast(_to_rgb(hue, tf.clip_by_value(saturation * scale, 0.0, 1.0), value), image.dtype)


def _patches(call: Call) -> Result:
    """Every pixel of a patch is a shifted and thinned image; they are joined along the channels."""
    import tensorflow as tf

    image = call.real(0)
    _, high, wide, _ = call.op.get_attr("ksizes")
    _, down, right, _ = call.op.get_attr("strides")
    _, rate_down, rate_right, _ = call.op.get_attr("rates")
    sizes, pads = [], [[0, 0]]
    for axis, window, stride, rate in ((1, high, down, rate_down), (2, wide, right, rate_right)):
        given, reach = call.size(0, axis), (window - 1) * rate + 1
        if call.op.get_attr("padding") == b"VALID":
            sizes.append((given - reach) // stride + 1)
            pads.append([0, 0])
        else:
            sizes.append(-(-given // stride))
            missing = max((sizes[-1] - 1) * stride + reach - given, 0)
            pads.append([missing // 2, missing - missing // 2])
    if min(sizes) < 1:
        raise Untranslatable("ExtractImagePatches of patches larger than the image")
    image = tf.pad(image, [*pads, [0, 0]])
    parts = []
    for y in range(high):
        for x in range(wide):
            top, left = y * rate_down, x * rate_right
            bottom, end = top + (sizes[0] - 1) * down + 1, left + (sizes[1] - 1) * right + 1
            parts.append(image[:, top:bottom:down, left:end:right])
    return tf.concat(parts, -1)


RULES: dict[str, Rule] = {
    "AdjustHue": _adjust_hue,
    "AdjustSaturation": _adjust_saturation,
    "CropAndResize": _crop_and_resize,
    "ExtractImagePatches": _patches,
    "HSVToRGB": _hsv_to_rgb,
    "RGBToHSV": _rgb_to_hsv,
    "ResizeArea": _separable,
    "ResizeBicubic": _separable,
    "ResizeBilinear": _bilinear,
    "ResizeNearestNeighbor": _nearest,
    "ScaleAndTranslate": _separable,
}
