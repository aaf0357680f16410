"""textgenrnn: the next character of a text (`textgenrnn_model` of the package textgenrnn, MIT)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.recipes import hdf5_weights

if TYPE_CHECKING:
    import keras

_LENGTH, _CLASSES = 40, 465


def build(path: Path) -> keras.Model:
    """Input `text`, float32 (N, 40): the indices of the last characters, 0 for none. Output (N, 465): probabilities."""
    import keras
    from keras import layers, ops

    class AttentionWeightedAverage(layers.Layer):  # type: ignore[misc]
        """The average over time, weighted by the softmax of a product with one learned vector."""

        def build(self, shape: tuple[int | None, ...]) -> None:
            self.vector = self.add_weight(shape=(shape[-1], 1), name="vector")

        def call(self, hidden: object) -> object:
            return ops.sum(hidden * ops.softmax(hidden @ self.vector, axis=1), axis=1)

    text = layers.Input((_LENGTH,), name="text")
    embedded = layers.Embedding(_CLASSES, 100, name="embedding")(text)
    first = layers.LSTM(128, return_sequences=True, name="rnn_1")(embedded)
    second = layers.LSTM(128, return_sequences=True, name="rnn_2")(first)
    attention = AttentionWeightedAverage(name="attention")(layers.Concatenate()([embedded, first, second]))
    following = layers.Dense(_CLASSES, activation="softmax", name="output")(attention)
    model = keras.Model(text, following, name="textgenrnn")
    hdf5_weights.load(model, path, dict.fromkeys(("rnn_1", "rnn_2"), hdf5_weights.lstm_from_cudnn))
    return model
