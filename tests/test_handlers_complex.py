"""Complex numbers and Fourier transforms inside regions, checked by running both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from fixtures import audio
from stages.translate import translate
from tests.conftest import Converted
from tests.translation import assert_same, check, frozen, signal


@pytest.mark.parametrize("points", [1, 2, 7, 16, 30])
@pytest.mark.parametrize("length", [None, 12, 40])
def test_real_transform_and_back(points: int, length: int | None) -> None:
    given = None if length is None else [length]

    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z = tf.signal.rfft(x, given)
        return (
            tf.math.real(z),
            tf.math.imag(z),
            tf.signal.irfft(z, given) if points > 1 or given else x,
            tf.signal.irfft(z * tf.complex(0.5, 2.0), [9]),
        )

    check(function, signal(3, points), tolerance=2e-5)


@pytest.mark.parametrize("points", [2, 5, 4096 * 3, 2050])
def test_complex_transform_and_back(points: int) -> None:
    def function(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z = tf.signal.fft(tf.complex(x, y))
        back = tf.signal.ifft(z)
        scaled = z / tf.cast(tf.sqrt(float(points)), tf.complex64)
        return tf.math.real(scaled), tf.math.imag(scaled), tf.math.real(back), tf.math.imag(back)

    check(function, signal(2, points), signal(2, points, seed=1), tolerance=2e-5)


def test_long_real_transforms_are_split() -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z = tf.signal.rfft(x)
        return tf.math.real(z) / 64, tf.math.imag(z) / 64, tf.signal.irfft(z)

    check(function, signal(2, 4096), tolerance=2e-5)


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 3, 5)])
def test_transforms_over_several_axes(shape: tuple[int, ...]) -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z, w = tf.signal.rfft2d(x), tf.signal.fft2d(tf.cast(x, tf.complex64))
        cut = tf.signal.rfft2d(x, [6, 4])
        cube = tf.signal.ifft3d(tf.signal.fft3d(tf.complex(x[tf.newaxis], x[tf.newaxis])))
        found = [
            tf.math.real(z),
            tf.math.imag(z),
            tf.math.real(w),
            tf.math.imag(tf.signal.ifft2d(w * tf.complex(0.0, 1.0))),
        ]
        return *found, tf.signal.irfft2d(z, [3, 6]), tf.math.imag(cut), tf.math.real(cube)

    graph = frozen(function, tf.TensorSpec(shape))
    assert_same(graph, graph[2], signal(*shape), tolerance=2e-5)


@pytest.mark.parametrize("samples", [600, None])
def test_spectrogram_and_its_inverse(samples: int | None) -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z = tf.signal.stft(x, 128, 64)
        mel = tf.signal.linear_to_mel_weight_matrix(16, 65, 8000.0, 100.0, 3800.0)
        energy = tf.math.log(tf.matmul(tf.abs(z) ** 2, mel) + 1e-3)
        back = tf.signal.inverse_stft(z, 128, 64, window_fn=tf.signal.inverse_stft_window_fn(64))
        return (
            tf.abs(z),
            tf.math.angle(z + tf.complex(30.0, 0.0)),
            energy,
            tf.signal.mfccs_from_log_mel_spectrograms(energy),
            back,
        )

    graph = frozen(function, tf.TensorSpec((None, samples)))
    assert_same(graph, graph[2], signal(2, samples or 1000), tolerance=5e-5)


def test_sound_ops_of_tensorflow_1() -> None:
    def function(x: tf.Tensor) -> tuple[tf.Tensor, ...]:
        spectrogram = tf.raw_ops.AudioSpectrogram
        squared = spectrogram(input=x, window_size=100, stride=30, magnitude_squared=True)
        return squared / 100, spectrogram(input=x, window_size=64, stride=64)

    graph = frozen(function, tf.TensorSpec((400, 2)))
    assert_same(graph, graph[2], signal(400, 2), tolerance=2e-5)


def test_complex_arithmetic() -> None:
    constant = (np.arange(12).reshape(3, 4) * (1 + 0.5j)).astype(np.complex64)
    large = np.full((300, 4), 1 - 2j, np.complex64)

    def function(x: tf.Tensor, y: tf.Tensor) -> list[tf.Tensor]:
        z, w = tf.complex(x, y), tf.complex(y, x)
        results = [
            z * w + constant,
            z / (w + 3.0),
            -z,
            tf.math.conj(z) - w,
            tf.square(z),
            tf.math.reciprocal(z + 4.0),
            tf.exp(z),
            tf.math.log(z + 5.0),
            tf.matmul(z, w, transpose_b=True),
            tf.matmul(tf.stack([z, w]), tf.stack([w, z]), adjoint_a=True),
            tf.einsum("ij,kj->ik", z, w),
            tf.linalg.adjoint(z),
            tf.reduce_sum(z, 1),
            tf.reduce_mean(w, 0),
            tf.transpose(tf.reshape(z, [2, -1])),
            tf.concat([z, w], 1)[:, 1:6:2],
            tf.pad(z, [[0, 0], [1, 1]]),
            tf.split(z, 2, 1)[1],
            tf.unstack(z, axis=1)[2],
            tf.gather(w, [1, 0], axis=1),
            tf.where(x > 0, z, w),
            tf.cast(x, tf.complex64),
            tf.zeros_like(z) + tf.ones_like(w),
            tf.tile(z, [1, 2]),
            tf.add_n([z, w, z]),
            tf.tensordot(z, tf.constant(large), [[1], [1]]),
            tf.math.divide_no_nan(z, tf.complex(tf.nn.relu(x), 0.0 * y)),
        ]
        parts = [part for value in results for part in (tf.math.real(value), tf.math.imag(value))]
        kinds = [tf.cast(tf.equal(z, w), tf.float32), tf.cast(z, tf.float32), tf.cast(tf.shape(z), tf.float32)]
        return [*parts, *kinds, tf.abs(z), tf.math.angle(w)]

    check(function, signal(3, 4), signal(3, 4, seed=1), tolerance=2e-5)


def test_parts_of_different_shapes_are_broadcast() -> None:
    def function(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, ...]:
        z, w = tf.complex(x, y), tf.complex(x[0], -x)
        return tf.math.real(tf.concat([z, w], 0)), tf.math.angle(z), tf.math.imag(w)

    row = np.array([[0.5, 3.0, -1.0, 1.0]], np.float32)
    check(function, np.array([[-1, 4, 0.5, 2]] * 3, np.float32), row)


def test_magnitude_neither_overflows_nor_vanishes() -> None:
    x = np.array([3e30, 3e-30, 0, -0.0], np.float32)
    y = np.array([4e30, 4e-30, 0, 2.0], np.float32)
    graph = frozen(lambda a, b: tf.abs(tf.complex(a, b)), *[tf.TensorSpec((None,))] * 2)
    assert_same(graph, graph[2], x, y, tolerance=0)


def test_nodes_of_an_expansion_come_from_the_op() -> None:
    graph = frozen(lambda x: tf.abs(tf.signal.rfft(x)) + 1.0, tf.TensorSpec((None, 8)))
    ops = {node.name: node.op for node in graph[0].node}
    found = {
        ops[name]
        for node in translate(*graph).model.graph.node
        for name in node.doc_string.removeprefix("tf:").split("|")
    }
    assert {"RFFT", "ComplexAbs"} <= found


def test_a_transform_of_open_length_is_refused_by_name() -> None:
    graph = frozen(lambda x: tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64))), tf.TensorSpec((2, None)))
    refused = {op: why for _, op, why in translate(*graph).unsupported}
    assert "no fixed size" in refused["FFT"]


def test_complex_ops_without_a_rule_are_refused_by_name() -> None:
    graph = frozen(lambda x: tf.math.real(tf.tanh(tf.complex(x, x))), tf.TensorSpec((2,)))
    assert "Tanh" in {op for _, op, _ in translate(*graph).unsupported}


@pytest.mark.slow
def test_complex_numbers_stay_inside_one_engine(converted: Callable[..., Converted]) -> None:
    """TensorRT for RTX builds it too."""
    result = converted(audio.keyword_spotter(), backend="auto")
    assert result.left == {}
    (region,) = result.report.regions
    assert {tensor.dtype for tensor in (*region.inputs, *region.outputs)} == {"float32"}
    assert "tensorrt_rtx" in {engine.backend for engine in region.engines}
    assert result.report.verification.passed
