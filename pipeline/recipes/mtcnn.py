"""mtcnn: faces in an image, by three networks one after the other (the package mtcnn, MIT).

The package calls its networks from numpy. Here the whole cascade is one TensorFlow function for a batch of images of
one size: each step keeps a fixed number of boxes, and those that are none have score 0. Unlike the package, the last
step too drops boxes by intersection over union.
Source: Zhang et al., Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks, 2016.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.recipes import joblib_lz4

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    Found = tuple[tf.Tensor, tf.Tensor]
    """Boxes (N, K, 4) as top, left, bottom, right in pixels, and scores (N, K), 0 where there is no box."""

SIZE = 192
_SMALLEST_FACE, _SCALE_FACTOR = 20, 0.709
_CELL, _STRIDE = 12, 2
_PROPOSALS, _REFINED, _FACES = 64, 32, 16
_THRESHOLDS = (0.6, 0.7, 0.8)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a network looks at (`size` × `size` pixels), the least score, and how many boxes of an image go on."""

    size: int
    threshold: float
    kept: int


def build(path: Path) -> tf.Module:
    """The folder with `pnet.lz4`, `rnet.lz4`, `onet.lz4` in, a module out.

    Its `serve` takes `image`, float32 (N, 192, 192, 3), 0 to 255, and returns `boxes` (N, 16, 4) as top, left, bottom,
    right in pixels, and `scores` (N, 16).
    """
    import tensorflow as tf

    networks = [make(path / f"{make.__name__[1:]}.lz4") for make in (_pnet, _rnet, _onet)]

    class Cascade(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.networks = networks

        @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, "image")])  # type: ignore[untyped-decorator]
        def serve(self, image: tf.Tensor) -> dict[str, tf.Tensor]:
            pnet, rnet, onet = self.networks
            image = (image - 127.5) / 128
            found = _propose(pnet, image)
            found = _refine(rnet, image, found, _Step(24, _THRESHOLDS[1], _REFINED))
            boxes, scores = _refine(onet, image, found, _Step(48, _THRESHOLDS[2], _FACES))
            return {"boxes": boxes, "scores": scores}

    return Cascade()


def _propose(pnet: keras.Model, image: tf.Tensor) -> Found:
    """Boxes by the first network on the image at several sizes, so that faces of any size fill its cell of 12 × 12."""
    import tensorflow as tf

    found = []
    count = round(-(np.log(SIZE / _CELL) / np.log(_SCALE_FACTOR) + 1))
    for scale in _CELL / _SMALLEST_FACE * _SCALE_FACTOR ** np.arange(count):
        size = int(SIZE * scale)
        offsets, classes = pnet(tf.image.resize(image, [size, size], tf.image.ResizeMethod.AREA), training=False)
        rows, columns = np.mgrid[: offsets.shape[1], : offsets.shape[2]].astype(np.float32) * _STRIDE
        cells = np.stack([rows, columns, rows + _CELL, columns + _CELL], -1)
        boxes = (cells + _CELL * tf.gather(offsets, [1, 0, 3, 2], axis=-1)) / np.float32(scale)
        boxes = tf.reshape(boxes, [-1, rows.size, 4])
        scores = tf.reshape(classes[..., 1], [-1, rows.size])
        found.append(_suppress(boxes, scores, 0.5, _THRESHOLDS[0], _PROPOSALS))
    boxes, scores = (tf.concat(parts, 1) for parts in zip(*found, strict=True))
    return _suppress(boxes, scores, 0.7, _THRESHOLDS[0], _PROPOSALS)


def _refine(network: keras.Model, image: tf.Tensor, found: Found, step: _Step) -> Found:
    """Corrected boxes and new scores, by a network on what the boxes show."""
    import tensorflow as tf

    boxes, scores = _square(found[0]), found[1]
    count = boxes.shape[1]
    owner = tf.repeat(tf.range(tf.shape(image)[0]), count)
    shown = tf.image.crop_and_resize(image, tf.reshape(boxes, [-1, 4]) / SIZE, owner, [step.size, step.size])
    offsets, classes = network(shown, training=False)
    offsets = tf.gather(tf.reshape(offsets, [-1, count, 4]), [1, 0, 3, 2], axis=-1)
    sides = boxes[..., 2:] - boxes[..., :2] + 1
    corrected = boxes + offsets * tf.concat([sides, sides], -1)
    real = tf.cast(scores > 0, tf.float32)
    return _suppress(corrected, tf.reshape(classes[:, 1], [-1, count]) * real, 0.7, step.threshold, step.kept)


def _suppress(boxes: tf.Tensor, scores: tf.Tensor, overlap: float, threshold: float, kept: int) -> Found:
    """For each image the best boxes that overlap no better one, filled up with zeros to `kept`."""
    import tensorflow as tf

    result = tf.image.combined_non_max_suppression(
        boxes[:, :, None], scores[..., None], kept, kept, overlap, threshold, clip_boxes=False
    )
    return tf.reshape(result[0], [-1, kept, 4]), tf.reshape(result[1], [-1, kept])


def _square(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes with the same centres, as high as wide."""
    import tensorflow as tf

    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    half = tf.reduce_max(boxes[..., 2:] - boxes[..., :2], -1, keepdims=True) / 2
    return tf.concat([centres - half, centres + half], -1)


def _pnet(weights: Path) -> keras.Model:
    from keras import layers

    image = layers.Input((None, None, 3))
    hidden = _convolution(image, 10, 3)
    hidden = layers.MaxPooling2D(2, 2, "same")(hidden)
    hidden = _convolution(_convolution(hidden, 16, 3), 32, 3)
    heads = [layers.Conv2D(4, 1)(hidden), layers.Conv2D(2, 1, activation="softmax")(hidden)]
    return _model(image, heads, weights)


def _rnet(weights: Path) -> keras.Model:
    from keras import layers

    image = layers.Input((24, 24, 3))
    hidden = layers.MaxPooling2D(3, 2, "same")(_convolution(image, 28, 3))
    hidden = layers.MaxPooling2D(3, 2)(_convolution(hidden, 48, 3))
    hidden = _flat(_convolution(hidden, 64, 2), 128)
    return _model(image, [layers.Dense(4)(hidden), layers.Dense(2, activation="softmax")(hidden)], weights)


def _onet(weights: Path) -> keras.Model:
    """Its third result, in the middle, would be five points of the face."""
    import keras
    from keras import layers

    image = layers.Input((48, 48, 3))
    hidden = layers.MaxPooling2D(3, 2, "same")(_convolution(image, 32, 3))
    hidden = layers.MaxPooling2D(3, 2)(_convolution(hidden, 64, 3))
    hidden = layers.MaxPooling2D(2, 2, "same")(_convolution(hidden, 64, 3))
    hidden = _flat(_convolution(hidden, 128, 2), 256)
    heads = [layers.Dense(4)(hidden), layers.Dense(10)(hidden), layers.Dense(2, activation="softmax")(hidden)]
    offsets, _, classes = _model(image, heads, weights).outputs
    return keras.Model(image, [offsets, classes])


def _convolution(hidden: keras.KerasTensor, filters: int, size: int) -> keras.KerasTensor:
    from keras import layers

    return layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(filters, size)(hidden))


def _flat(hidden: keras.KerasTensor, units: int) -> keras.KerasTensor:
    from keras import layers

    return layers.PReLU()(layers.Dense(units)(layers.Flatten()(layers.Permute((2, 1, 3))(hidden))))


def _model(image: keras.KerasTensor, heads: list[keras.KerasTensor], weights: Path) -> keras.Model:
    import keras

    model = keras.Model(image, heads)
    model.set_weights(joblib_lz4.load(weights))
    return model
