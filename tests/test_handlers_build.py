"""TensorRT for RTX takes and builds what expansions and handlers make, several at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from stages.backends.base import BuildOptions
from stages.backends.isolated import Worker
from stages.onnx_files import save_model
from stages.translate import translate
from tests.translation import frozen

Values = dict[str, tf.Tensor]


def _numbers(v: Values) -> list[tf.Tensor]:
    x, y, i = v["rows"], tf.nn.sigmoid(v["rows"]), v["integers"]
    pairs = (tf.math.divide_no_nan, tf.math.multiply_no_nan, tf.math.xdivy, tf.math.xlogy, tf.math.xlog1py)
    results = [op(x, y) for op in (*pairs, tf.math.floormod, tf.truncatemod)]
    results += [tf.math.expm1(x), tf.math.log1p(y), tf.math.erfc(x), tf.where(x > 0, tf.math.log(x), x)]
    results += [i // 3, i % 3, tf.bitwise.bitwise_xor(i, 5), tf.bitwise.right_shift(i, 2), tf.math.top_k(i, 2)[0]]
    results += [tf.raw_ops.Bucketize(input=x, boundaries=[0.0, 1.0]), tf.math.in_top_k(i[:, 0], x, 2)]
    results += [tf.searchsorted(tf.constant([[0.0, 1.0, 2.0]] * 4), x[:4]), tf.math.reduce_euclidean_norm(x, 1)]
    return results


def _moves(v: Values) -> list[tf.Tensor]:
    x, image, rows = v["rows"], v["image"], tf.clip_by_value(v["integers"][:, :1], 0, 3)
    results = [tf.pad(image, [[0, 0], [1, 2], [2, 0], [0, 0]], mode) for mode in ("REFLECT", "SYMMETRIC")]
    results += [tf.roll(x, 1, 1), tf.linalg.diag(x), tf.linalg.band_part(tf.linalg.diag(x), 1, 0)]
    results += [tf.linalg.diag_part(image[:, :4, :4, 0]), tf.linalg.set_diag(image[:, :4, :4, 0], x[:, :4])]
    results += [tf.scatter_nd(rows, x, [4, 6]), tf.tensor_scatter_nd_max(tf.zeros([4, 6]), rows, x)]
    results += [tf.math.unsorted_segment_sum(x, rows[:, 0], 4), tf.linalg.inv(image[:, :3, :3, 0] + 9.0 * tf.eye(3))]
    results += [tf.math.cumprod(x, 1, exclusive=True), tf.math.cumulative_logsumexp(x, 1)]
    return results


def _pictures(v: Values) -> list[tf.Tensor]:
    image = v["image"]
    results = [tf.image.resize(image, [11, 5], method, antialias=True) for method in ("bicubic", "area", "nearest")]
    results += [tf.image.extract_patches(image, [1, 3, 3, 1], [1, 2, 2, 1], [1, 1, 1, 1], "SAME")]
    results += [tf.image.rgb_to_hsv(image), tf.image.adjust_saturation(image, 1.3), tf.image.adjust_hue(image, 0.2)]
    boxes, owners = tf.nn.sigmoid(v["rows"][:, :4]), v["integers"][:, 0]
    results += [tf.image.crop_and_resize(image, boxes, owners, [3, 4])]
    results += [tf.quantization.fake_quant_with_min_max_args(image), tf.image.resize(image, [16, 12], "nearest")]
    return results


def _spectra(v: Values) -> list[tf.Tensor]:
    x = v["rows"]
    z = tf.signal.rfft(x)
    results = [tf.abs(z), tf.math.angle(z), tf.signal.irfft(z), tf.math.real(tf.signal.fft(tf.complex(x, -x)))]
    return [*results, tf.abs(tf.signal.fft2d(tf.cast(v["image"][..., 0], tf.complex64)))]


@pytest.fixture(scope="module")
def worker() -> Worker:
    with Worker("tensorrt_rtx", time_limit_seconds=120) as running:
        yield running  # type: ignore[misc]


@pytest.mark.parametrize("family", [_numbers, _moves, _pictures, _spectra])
def test_family_is_taken_and_built(family: Callable[[Values], list[tf.Tensor]], worker: Worker, tmp_path: Path) -> None:
    specs = {
        "rows": tf.TensorSpec((5, 6), tf.float32),
        "integers": tf.TensorSpec((5, 6), tf.int32),
        "image": tf.TensorSpec((5, 8, 6, 3), tf.float32),
    }
    graph = frozen(lambda *values: family(dict(zip(specs, values, strict=True))), *specs.values())
    translation = translate(*graph)
    assert translation.unsupported == ()
    model = tmp_path / "model.onnx"
    save_model(translation.model, model, translation.weights)
    support = worker.check(model)
    assert support.accepted, support
    assert not support.shape_inputs
    outcome = worker.build(model, model.with_suffix(".plan"), BuildOptions())
    assert outcome.built, outcome.failure
