"""Weight files of Keras 2 (`save_weights` to HDF5) into models of Keras 3, by layer name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import h5py  # type: ignore[import-untyped]
    import keras

Array = npt.NDArray[np.float32]


def load(model: keras.Model, path: Path, convert: Mapping[str, Callable[[list[Array]], list[Array]]]) -> None:
    """Set the weights of every layer from the group of the file that has its name.

    Args:
        convert: by layer name: from the file's arrays to the layer's, where their layouts differ.

    Raises:
        ValueError: layers with weights, or shapes, differ between model and file.
        OSError: the file is no HDF5 file.
    """
    import h5py

    with h5py.File(path) as file:
        stored = {
            name: [file[name][weight][()] for weight in file[name].attrs["weight_names"]] for name in _names(file)
        }
    stored = {name: arrays for name, arrays in stored.items() if arrays}
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    if stored.keys() != layers.keys():
        raise ValueError(f"layers with weights differ: {', '.join(sorted(stored.keys() ^ layers.keys()))}")
    for name, arrays in stored.items():
        layers[name].set_weights(convert[name](arrays) if name in convert else arrays)


def _names(file: h5py.File) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else name for name in file.attrs["layer_names"]]


def lstm_from_cudnn(arrays: list[Array]) -> list[Array]:
    """Kernel, recurrent kernel and bias of a CuDNNLSTM as those of an LSTM.

    cuDNN keeps each gate's matrices transposed, the input's in column-major order, and two biases that are added;
    as in `tf_keras/src/saving/legacy/hdf5_format.py`.
    """
    kernel, recurrent, bias = arrays
    gates = [gate.T.reshape(gate.shape, order="F") for gate in np.hsplit(kernel, 4)]
    recurrent_gates = [gate.T for gate in np.hsplit(recurrent, 4)]
    return [np.hstack(gates), np.hstack(recurrent_gates), np.add(*np.split(bias, 2))]
