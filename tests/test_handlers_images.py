"""Resizes, crops, patches, colours and fake quantisation, checked by running both."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.translation import assert_same, check, frozen, signal


@pytest.mark.parametrize("size", [(12, 10), (9, 7), (3, 4), (6, 5)])
@pytest.mark.parametrize("op", ["ResizeNearestNeighbor", "ResizeBicubic", "ResizeArea", "ResizeBilinear"])
def test_resizes(op: str, size: tuple[int, int]) -> None:
    def function(x: tf.Tensor) -> list[tf.Tensor]:
        resize = getattr(tf.raw_ops, op)
        results = [resize(images=x, size=size), resize(images=x, size=size, align_corners=True)]
        return results if op == "ResizeArea" else [*results, resize(images=x, size=size, half_pixel_centers=True)]

    check(function, signal(2, 6, 5, 3))


@pytest.mark.parametrize("method", ["bilinear", "lanczos3", "bicubic", "gaussian", "mitchellcubic", "area", "nearest"])
def test_image_resize_with_antialiasing(method: str) -> None:
    check(lambda x: tf.image.resize(x, [4, 7], method, antialias=True), signal(2, 9, 6, 3))


@pytest.mark.parametrize("dtype", [tf.uint8, tf.int32, tf.float16])
def test_resizes_of_other_dtypes_are_computed_in_float32(dtype: tf.DType) -> None:
    image = np.random.default_rng(0).integers(0, 99, (2, 6, 5, 3)).astype(dtype.as_numpy_dtype)
    check(
        lambda x: (
            tf.raw_ops.ResizeBilinear(images=x, size=[9, 7], half_pixel_centers=True),
            tf.raw_ops.ResizeBicubic(images=x, size=[9, 7], half_pixel_centers=True),
            tf.raw_ops.ResizeNearestNeighbor(images=x, size=[9, 7], half_pixel_centers=True),
        ),
        image,
    )


@pytest.mark.parametrize("method", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (7, 2)])
def test_crops_partly_outside_the_image(method: str, size: tuple[int, int]) -> None:
    boxes = np.array([[0, 0, 1, 1], [0.2, 0.6, 0.9, 0.1], [-0.3, 0.2, 1.4, 0.7], [0.5, 0.5, 0.5, 0.5]], np.float32)
    owners = np.array([0, 1, 1, 0], np.int32)
    check(
        lambda x, b, o: tf.image.crop_and_resize(x, b, o, size, method, extrapolation_value=-2.5),
        signal(2, 6, 5, 3),
        boxes,
        owners,
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("window", "stride", "rate"), [((3, 2), (1, 2), (1, 1)), ((2, 2), (3, 3), (2, 1))])
def test_patches(padding: str, window: tuple[int, int], stride: tuple[int, int], rate: tuple[int, int]) -> None:
    sizes = [[1, *pair, 1] for pair in (window, stride, rate)]
    check(lambda x: tf.image.extract_patches(x, *sizes, padding), signal(2, 7, 9, 3))


def test_colours() -> None:
    rng = np.random.default_rng(3)
    image = rng.random((2, 5, 4, 3)).astype(np.float32)
    image[0, 0], image[0, 1, 0], image[0, 1, 1] = 0, 1, [0.3, 0.3, 0.3]

    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        hsv = tf.image.rgb_to_hsv(x)
        back = tf.image.hsv_to_rgb(hsv)
        return hsv, back, tf.image.adjust_hue(x, 0.3), tf.image.adjust_hue(x, -0.7), tf.image.adjust_saturation(x, 2.3)

    check(function, image, tolerance=2e-5)


@pytest.mark.parametrize(("low", "high"), [(-3.1, 2.7), (0.0, 6.0), (0.5, 4.0), (-4.0, -1.0), (-1.0, 1.0)])
@pytest.mark.parametrize(("bits", "narrow"), [(8, False), (8, True), (4, False)])
def test_fake_quantisation_rounds_as_tensorflow_does(low: float, high: float, bits: int, narrow: bool) -> None:
    step = (high - low) / (2**bits - 1)
    values = np.concatenate([np.arange(-8, 8) * step / 2, signal(40) * 5, [low, high]]).astype(np.float32)

    def function(x: tf.Tensor) -> list[tf.Tensor]:
        settings = {"num_bits": bits, "narrow_range": narrow}
        args = [tf.quantization.fake_quant_with_min_max_args(x, low, high, **settings)] if low <= 0 <= high else []
        return [*args, tf.quantization.fake_quant_with_min_max_vars(x, low, high, **settings)]

    check(function, values, tolerance=1e-6)


def test_fake_quantisation_by_channel() -> None:
    low, high = tf.constant([-3.1, -1.0, 0.0, 0.0]), tf.constant([2.7, 1.0, 4.0, 0.0])
    check(lambda x: tf.quantization.fake_quant_with_min_max_vars_per_channel(x, low, high), signal(5, 4) * 3)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("mode", ["HALF_TO_EVEN", "HALF_UP"])
def test_quantise_and_dequantise(signed: bool, mode: str) -> None:
    low, high = (-3.1, 2.7) if signed else (0.0, 6.0)
    settings = {"range_given": True, "round_mode": mode, "signed_input": signed}
    check(lambda x: tf.quantization.quantize_and_dequantize_v2(x, low, high, **settings), signal(9, 4) * 3)


def test_an_open_size_is_refused_by_name() -> None:
    from stages.translate import translate

    graph = frozen(lambda x: tf.raw_ops.ResizeBicubic(images=x, size=[4, 4]), tf.TensorSpec((1, None, None, 3)))
    (found,) = translate(*graph).unsupported
    assert found[1] == "ResizeBicubic"
    assert "no fixed size" in found[2]


def test_whole_multiples_of_the_size_stay_a_resize() -> None:
    graph = frozen(lambda x: tf.image.resize(x, [8, 10], "nearest"), tf.TensorSpec((None, 4, 5, 3)))
    translation = assert_same(graph, graph[2], signal(2, 4, 5, 3))
    assert "Gather" not in {node.op_type for node in translation.model.graph.node}
