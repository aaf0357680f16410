"""Weights without a model: they are read without running anything, and only into the architecture that they belong to."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from fixtures.example import Weights
from pipeline.recipes import build, hdf5_weights, joblib_lz4
from stages.errors import ModelError


def frame(*blocks: tuple[bytes, bool], flags: int = 0x40, size: int | None = None) -> bytes:
    """An LZ4 frame of (block, whether it is stored as it is), with a checksum byte that nobody looks at."""
    head = b"\x04\x22\x4d\x18" + bytes([flags | (0x08 if size is not None else 0), 0x40])
    body = b"".join((len(data) | (1 << 31 if plain else 0)).to_bytes(4, "little") + data for data, plain in blocks)
    return head + (size.to_bytes(8, "little") if size is not None else b"") + b"\0" + body + bytes(4)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frame((b"plain", True), size=5), b"plain"),
        (frame((b"\x50plain", False)), b"plain"),
        # Literals "ab", a match of 4 + 5 from 2 bytes back, which overlaps itself; then the literals that end a block.
        (frame((b"\x25ab\x02\x00\x10!", False)), b"ababababab" + b"a!"),
        # Lengths of 15 go on: 15 + 3 literals, then a match of 4 + 15 + 255 + 1.
        (frame((b"\xff\x03" + b"x" * 18 + b"\x01\x00\xff\x01\x10y", False)), b"x" * (18 + 275) + b"y"),
        # A later block repeats what an earlier one holds.
        (frame((b"\x40wxyz", False), (b"\x00\x04\x00\x10!", False)), b"wxyzwxyz!"),
    ],
)
def test_lz4_frames_unpack(data: bytes, expected: bytes) -> None:
    assert joblib_lz4.decompress(data) == expected


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04", frame((b"\x00\x04\x00\x10!", False)), frame((b"\x50plain", False))[:-6]]
)
def test_damaged_lz4_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no LZ4 frame|not there|cut off"):
        joblib_lz4.decompress(data)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('the pickle was run')",)


@pytest.mark.parametrize("content", [Trap(), [Trap()], ["text"], {"a": 1}])
def test_a_pickle_of_anything_but_arrays_is_refused_and_not_run(content: object, tmp_path: Path) -> None:
    path = tmp_path / "weights.lz4"
    path.write_bytes(frame((pickle.dumps(content), True)))
    with pytest.raises(ValueError, match=r"is no array|is no list of arrays"):
        joblib_lz4.load(path)


def small_model() -> keras.Model:
    layers = keras.layers
    return keras.Sequential([layers.Input((3,)), layers.Dense(2, name="first"), layers.Dense(1, name="second")])


def write_weights(path: Path, layers: dict[str, list[np.ndarray]]) -> Path:
    """As Keras 2's `save_weights` does."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{index}".encode() for index in range(len(arrays))]
            for index, array in enumerate(arrays):
                group.create_dataset(f"{name}/{index}", data=array)
    return path


WEIGHTS = {
    "second": [Weights(0).array(2, 1), Weights(1).array(1)],
    "first": [Weights(2).array(3, 2), Weights(3).array(2)],
}


def test_weights_go_to_the_layers_of_their_names(tmp_path: Path) -> None:
    model = small_model()
    hdf5_weights.load(model, write_weights(tmp_path / "w.h5", {"input": [], **WEIGHTS}), {})
    for name, arrays in WEIGHTS.items():
        for actual, expected in zip(model.get_layer(name).get_weights(), arrays, strict=True):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("layers", [{"first": WEIGHTS["first"]}, {**WEIGHTS, "third": [np.zeros(1, np.float32)]}])
def test_weights_of_another_model_are_refused(layers: dict[str, list[np.ndarray]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layers with weights differ: (second|third)"):
        hdf5_weights.load(small_model(), write_weights(tmp_path / "w.h5", layers), {})


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    turned = {**WEIGHTS, "first": [WEIGHTS["first"][0].T, WEIGHTS["first"][1]]}
    with pytest.raises(ValueError, match="first"):
        hdf5_weights.load(small_model(), write_weights(tmp_path / "w.h5", turned), {})


def test_a_recipe_names_the_file_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"w\.h5: is not what the recipe deepcut expects"):
        build("deepcut", write_weights(tmp_path / "w.h5", WEIGHTS))


def test_cudnn_weights_make_the_lstm_that_keras_2_makes_of_them(tmp_path: Path) -> None:
    tf_keras = pytest.importorskip("tf_keras")
    arrays = [Weights(0).array(5, 12), Weights(1).array(3, 12), Weights(2).array(24)]
    path = write_weights(tmp_path / "w.h5", {"lstm": arrays})
    layers = tf_keras.layers
    inputs = layers.Input((4, 5))
    reference = tf_keras.Model(inputs, layers.LSTM(3, name="lstm")(inputs))
    reference.load_weights(path)
    expected = reference.get_layer("lstm").get_weights()
    for actual, wanted in zip(hdf5_weights.lstm_from_cudnn(arrays), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
