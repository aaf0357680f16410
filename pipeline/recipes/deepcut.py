"""deepcut: where the words of a Thai text begin (`get_convo_nn2` of the package deepcut, MIT)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.recipes import hdf5_weights

if TYPE_CHECKING:
    import keras

_CONTEXT = 21
_FILTERS = {**dict.fromkeys(range(1, 9), 200), **dict.fromkeys(range(9, 12), 150), 12: 100}
"""By width of the convolution, in characters."""


def build(path: Path) -> keras.Model:
    """Inputs `characters` and `types`, float32 (N, 21): indices of a character, its neighbours, and their kinds.
    Output (N, 1): the probability that a word begins there."""
    import keras
    from keras import layers

    characters = layers.Input((_CONTEXT,), name="characters")
    types = layers.Input((_CONTEXT,), name="types")
    embedded = layers.Embedding(178, 32, name="embedding_1")(characters)
    embedded = layers.BatchNormalization(name="batch_normalization_1")(embedded)
    convolved = []
    for width, filters in _FILTERS.items():
        hidden = layers.Conv1D(filters, width, activation="relu", name=f"conv1d_{width}")(embedded)
        hidden = layers.TimeDistributed(layers.Dense(5), name=f"time_distributed_{width}")(hidden)
        convolved.append(layers.ZeroPadding1D((0, width - 1))(hidden))
    kinds = layers.Embedding(12, 12, name="embedding_2")(types)
    hidden = layers.Concatenate()([embedded, layers.Maximum()(convolved), kinds])
    hidden = layers.BatchNormalization(name="batch_normalization_2")(hidden)
    hidden = layers.Dense(100, activation="relu", name="dense_13")(layers.Flatten()(hidden))
    begins = layers.Dense(1, activation="sigmoid", name="dense_14")(hidden)
    model = keras.Model([characters, types], begins, name="deepcut")
    hdf5_weights.load(model, path, {})
    return model
