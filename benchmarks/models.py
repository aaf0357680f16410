"""The models that speed is measured on: keras.applications by name, and a 12-layer encoder. Random weights, seed 0."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

ENCODER = "encoder12"
TOKENS, WIDTH, HEADS, LAYERS, VOCABULARY = 128, 768, 12, 12, 30522
"""The sizes of BERT-base."""


def make(name: str) -> tf.keras.Model:
    """A model by name."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(0)
    # Keras builds and traverses models by recursion, a few frames a layer.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10_000))
    return _encoder() if name == ENCODER else getattr(tf.keras.applications, name)(weights=None)


def example(name: str, batch: int) -> np.ndarray:
    """An input: images float32 (batch, height, width, 3) from 0 to 1, tokens int32 (batch, 128)."""
    random = np.random.default_rng(0)
    if name == ENCODER:
        return random.integers(0, VOCABULARY, (batch, TOKENS), np.int32)
    size = {"EfficientNetB0": 224, "MobileNetV2": 224, "ResNet50": 224}[name]
    return random.random((batch, size, size, 3), np.float32)


def _encoder() -> tf.keras.Model:
    import tensorflow as tf

    layers = tf.keras.layers
    tokens = tf.keras.Input((TOKENS,), dtype="int32", name="tokens")
    x = layers.Embedding(VOCABULARY, WIDTH)(tokens)
    for _ in range(LAYERS):
        attended = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(x, x)
        x = layers.LayerNormalization(epsilon=1e-6)(x + attended)
        hidden = layers.Dense(4 * WIDTH, activation="gelu")(x)
        x = layers.LayerNormalization(epsilon=1e-6)(x + layers.Dense(WIDTH)(hidden))
    return tf.keras.Model(tokens, layers.Dense(2, dtype="float32")(x[:, 0]))
