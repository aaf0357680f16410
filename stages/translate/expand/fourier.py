"""Discrete Fourier transforms as matrix products.

TensorRT for RTX has no transform of its own (its parser refuses ONNX's DFT), but multiplying by the matrix of a
transform is what its GPUs do best. A transform longer than `DIRECT` is split by Cooley and Tukey's algorithm into two
whose lengths multiply to it, so that no matrix grows beyond that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.translate.expand.call import Call, Pair, Result, Rule, Untranslatable
from stages.translate.expand.complex_ops import multiply

if TYPE_CHECKING:
    import tensorflow as tf

DIRECT = 2048
"""Longest transform that is one matrix: 2048 points of real numbers take one of 16 MiB."""


def _roots(rows: int, columns: int, points: int, sign: int) -> np.ndarray[tuple[int, int], np.dtype[np.complex128]]:
    """exp(sign · 2πi · row · column / points); the product is reduced first, which keeps all digits."""
    steps = np.outer(np.arange(rows), np.arange(columns)) % points
    result: np.ndarray[tuple[int, int], np.dtype[np.complex128]] = np.exp(sign * 2j * np.pi * steps / points)
    return result


def _constant(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], like: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    return tf.constant(values.astype(like.dtype.as_numpy_dtype))


def _times(x: tf.Tensor, matrix: tf.Tensor) -> tf.Tensor:
    """x (…, n) times matrix (n, m)."""
    import tensorflow as tf

    if x.shape.rank == 1:
        return tf.matmul(x[tf.newaxis], matrix)[0]
    return tf.matmul(x, matrix)


def _swap(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Exchange an axis and the last one."""
    import tensorflow as tf

    order = list(range(x.shape.rank))
    order[axis], order[-1] = order[-1], order[axis]
    return x if order == sorted(order) else tf.transpose(x, order)


def _reshape_last(x: tf.Tensor, axes: int, sizes: Sequence[int]) -> tf.Tensor:
    """Give the last `axes` axes other sizes."""
    import tensorflow as tf

    fixed = x.shape.as_list()[: x.shape.rank - axes]
    if fixed.count(None) <= 1:
        return tf.reshape(x, [-1 if size is None else size for size in fixed] + list(sizes))
    return tf.reshape(x, tf.concat([tf.shape(x)[: x.shape.rank - axes], list(sizes)], 0))


def _fitted(x: tf.Tensor, size: int) -> tf.Tensor:
    """Cut or pad the last axis with zeros."""
    import tensorflow as tf

    if x.shape[-1] > size:
        return x[..., :size]
    missing = size - x.shape[-1]
    return tf.pad(x, [[0, 0]] * (x.shape.rank - 1) + [[0, missing]]) if missing else x


def _factor(points: int) -> int:
    """The divisor of a length that is nearest below its square root."""
    best = next(n for n in range(int(points**0.5), 0, -1) if points % n == 0)
    if best == 1 or points // best > DIRECT**2:
        raise Untranslatable(f"a Fourier transform of {points} points does not split into shorter ones")
    return best


def transform(z: Pair, sign: int) -> Pair:
    """The transform over the last axis, whose size is known, without scaling: sign -1 forwards, 1 backwards."""
    import tensorflow as tf

    points = int(z.re.shape[-1])
    if points <= DIRECT:
        roots = _roots(points, points, points, sign)
        matrix = np.block([[roots.real, roots.imag], [-roots.imag, roots.real]])
        both = _times(tf.concat([z.re, z.im], -1), _constant(matrix, z.re))
        return Pair(both[..., :points], both[..., points:])
    outer = _factor(points)
    inner = points // outer
    # x[n1 · inner + n2] → X[k1 + outer · k2]
    rows = Pair(*(_swap(_reshape_last(part, 1, [outer, inner]), -2) for part in (z.re, z.im)))
    rows = transform(rows, sign)
    twiddles = _roots(inner, outer, points, sign)
    rows = multiply(rows, Pair(_constant(twiddles.real, z.re), _constant(twiddles.imag, z.re)))
    columns = transform(Pair(_swap(rows.re, -2), _swap(rows.im, -2)), sign)
    parts = (_reshape_last(_swap(part, -2), 2, [points]) for part in (columns.re, columns.im))
    return Pair(*parts)


def _along(z: Pair, axis: int, sign: int) -> Pair:
    turned = transform(Pair(_swap(z.re, axis), _swap(z.im, axis)), sign)
    return Pair(_swap(turned.re, axis), _swap(turned.im, axis))


def _from_real(x: tf.Tensor, points: int) -> Pair:
    """The first points // 2 + 1 values of the transform of real numbers, cut or padded to `points`."""
    import tensorflow as tf

    if points > DIRECT:
        x = _fitted(x, points)
        whole = transform(Pair(x, tf.zeros_like(x)), -1)
        return Pair(whole.re[..., : points // 2 + 1], whole.im[..., : points // 2 + 1])
    given, bins = min(points, int(x.shape[-1])), points // 2 + 1
    roots = _roots(given, bins, points, -1)  # padding with zeros is leaving out rows
    both = _times(x[..., :given], _constant(np.concatenate([roots.real, roots.imag], 1), x))
    return Pair(both[..., :bins], both[..., bins:])


def _to_real(z: Pair, points: int) -> tf.Tensor:
    """The inverse of `_from_real`: `points` real numbers from the first points // 2 + 1 values, cut or padded."""
    import tensorflow as tf

    bins = points // 2 + 1
    if points > DIRECT:
        z = Pair(_fitted(z.re, bins), _fitted(z.im, bins))
        mirrored = (points - 1) // 2
        # TensorFlow takes the first value, and the middle one of an even length, as real.
        keep = np.ones(bins)
        keep[0] = 0
        if points % 2 == 0:
            keep[-1] = 0
        im = z.im * _constant(keep, z.im)
        tail = Pair(tf.reverse(z.re[..., 1 : mirrored + 1], [-1]), -tf.reverse(im[..., 1 : mirrored + 1], [-1]))
        whole = Pair(tf.concat([z.re, tail.re], -1), tf.concat([im, tail.im], -1))
        return transform(whole, 1).re / points
    given = min(bins, int(z.re.shape[-1]))
    weight = np.full((given, 1), 2.0)  # each value stands for its mirror image too
    weight[0] = 1
    if points % 2 == 0 and given == bins:
        weight[-1] = 1
    roots = _roots(given, points, points, 1) * weight / points
    matrix = np.concatenate([roots.real, -roots.imag])
    return _times(tf.concat([z.re[..., :given], z.im[..., :given]], -1), _constant(matrix, z.re))


def _fft(axes: int, sign: int) -> Rule:
    def rule(call: Call) -> Result:
        z, scale = call.pair(0), 1
        for axis in range(-axes, 0):
            points = call.size(0, axis)
            if points == 0:
                raise Untranslatable(f"{call.op.type} of no points")
            z, scale = _along(z, axis, sign), scale * points
        return z if sign < 0 else Pair(z.re / scale, z.im / scale)

    return rule


def _lengths(call: Call, axes: int) -> list[int]:
    lengths = [int(length) for length in call.known(1, "the length").ravel()]
    if min(lengths) < 1:
        raise Untranslatable(f"{call.op.type} of no points")
    for axis in range(-axes, 0):
        call.size(0, axis)
    return lengths


def _resized(z: Pair, axis: int, size: int) -> Pair:
    parts = (_swap(_fitted(_swap(part, axis), size), axis) for part in (z.re, z.im))
    return Pair(*parts)


def _rfft(axes: int) -> Rule:
    def rule(call: Call) -> Result:
        lengths = _lengths(call, axes)
        z = _from_real(call.real(0), lengths[-1])
        for axis in range(-axes, -1):
            z = _along(_resized(z, axis, lengths[axis]), axis, -1)
        return z

    return rule


def _irfft(axes: int) -> Rule:
    def rule(call: Call) -> Result:
        lengths = _lengths(call, axes)
        z = call.pair(0)
        scale = 1
        for axis in range(-axes, -1):
            z = _along(_resized(z, axis, lengths[axis]), axis, 1)
            scale *= lengths[axis]
        x = _to_real(z, lengths[-1])
        return x / scale if scale > 1 else x

    return rule


def _spectrogram(call: Call) -> Result:
    """AudioSpectrogram of (samples, channels): frames under a periodic Hann window, padded to a power of two."""
    import tensorflow as tf

    samples, size, stride = call.size(0, 0), call.number("window_size"), call.number("stride")
    if samples < size:
        raise Untranslatable("AudioSpectrogram of fewer samples than a window")
    starts = np.arange(0, samples - size + 1, stride)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    sound = tf.transpose(call.real(0))
    frames = tf.gather(sound, (starts[:, np.newaxis] + np.arange(size)).astype(np.int32), axis=1)
    z = _from_real(frames * _constant(window, frames), 1 << (size - 1).bit_length())
    power = z.re * z.re + z.im * z.im
    return power if call.attr("magnitude_squared") else tf.sqrt(power)


REAL_RULES: dict[str, Rule] = {"AudioSpectrogram": _spectrogram}

RULES: dict[str, Rule] = {
    "FFT": _fft(1, -1),
    "FFT2D": _fft(2, -1),
    "FFT3D": _fft(3, -1),
    "IFFT": _fft(1, 1),
    "IFFT2D": _fft(2, 1),
    "IFFT3D": _fft(3, 1),
    "IRFFT": _irfft(1),
    "IRFFT2D": _irfft(2),
    "IRFFT3D": _irfft(3),
    "RFFT": _rfft(1),
    "RFFT2D": _rfft(2),
    "RFFT3D": _rfft(3),
}
