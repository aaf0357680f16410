"""Open Keras models of both generations, as `model.export` would serve them."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.artifacts import Source
from stages.errors import ModelError
from stages.keras_weights import without_copies
from stages.model import Model, close_matches, first_line, from_function

if TYPE_CHECKING:
    import keras

SUFFIXES = (".keras", ".h5", ".hdf5")
_SEED = 0


def is_keras(model: object) -> bool:
    """Whether it is a model of Keras 3 or of Keras 2 (tf_keras)."""
    modules = [sys.modules[name] for name in ("keras", "tf_keras") if name in sys.modules]
    return any(isinstance(model, module.Model) for module in modules)


def application(name: str) -> Model:
    """An architecture of keras.applications, its weights random and seeded; `ResNet50@128` for 128 × 128 images.

    Raises:
        ModelError: there is no such architecture, or it does not take that size.
    """
    import keras
    import tensorflow as tf

    architecture, _, size = name.partition("@")
    known = [entry for entry in dir(keras.applications) if entry[0].isupper()]
    if architecture not in known:
        raise ModelError(f"keras:{name}: no such architecture", f"keras: with {close_matches(architecture, known)}")
    if size and not size.isdigit():
        raise ModelError(f"keras:{name}: {size} is not an image size", f"keras:{architecture}@224")
    options = {"input_shape": (int(size), int(size), 3)} if size else {}
    tf.keras.utils.set_random_seed(_SEED)
    try:
        model = getattr(keras.applications, architecture)(weights=None, **options)
    except ValueError as error:
        raise ModelError(f"keras:{name}: {error}", f"keras:{architecture}, which has a size that fits") from error
    _settle_statistics(model)
    return open_keras_model(model, Source("keras", None))


def _settle_statistics(model: keras.Model) -> None:
    """Give batch normalisations the statistics of random images.

    With Keras's initial ones a signal dies away within some 20 layers, every output is the same, and comparing two runs
    of the model shows nothing; with exact ones it is chaotic, and amplifies rounding a hundredfold (measured: ResNet50).
    Hence somewhat larger variances, which damp both. Rounded to 8 bits, so that the order of sums does not matter.
    """
    import keras
    import ml_dtypes

    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    size = [axis or 1 for axis in model.input_shape[1:]]
    model(np.random.default_rng(_SEED).random((2, *size), np.float32), training=True)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
        variance = 1.5 * np.maximum(variance, 0.5 * variance.mean())
        for statistic, value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            statistic.assign(value.astype(ml_dtypes.bfloat16).astype(np.float32))


def open_keras_file(path: Path) -> Model:
    """Open a `.keras`, `.h5` or `.hdf5` file, with Keras 3 or, if that can't read it, Keras 2.

    Raises:
        ModelError: it is no model, holds weights only, or needs custom classes.
    """
    import keras

    version = _keras_version(path)
    try:
        with without_copies(), _with_input_layer(path) as readable:
            model = keras.saving.load_model(readable, compile=False)
    except Exception as error:
        if not version.startswith("3"):
            model = _load_with_keras_2(path, version, error)
        else:
            raise ModelError(
                f"{path}: Keras {keras.__version__} can't load it: {first_line(error)}",
                "load it in Python with its custom objects, and pass the model",
            ) from error
    return open_keras_model(model, Source("keras", str(path)))


@contextlib.contextmanager
def _with_input_layer(path: Path) -> Iterator[Path]:
    """The file, or a copy where its Sequential model begins without an input layer, as Keras wrote it until 2.3.

    Keras 3 would read the first layer's `batch_input_shape` as the shape without the batch, so that the model would have
    an axis too many.
    """
    import h5py  # type: ignore[import-untyped]

    with contextlib.ExitStack() as stack:
        if not zipfile.is_zipfile(path):
            with h5py.File(path) as file:
                model = json.loads(file.attrs["model_config"])
            layers = model["config"].get("layers", []) if isinstance(model["config"], dict) else model["config"]
            first = layers[0] if model["class_name"] == "Sequential" and layers else {"config": {}}
            shape = first["config"].get("batch_input_shape")
            if shape is not None and first["class_name"] != "InputLayer":
                config = {"batch_input_shape": shape, "name": f"{first['config']['name']}_input"}
                config["dtype"] = first["config"].get("dtype", "float32")
                layers.insert(0, {"class_name": "InputLayer", "config": config})
                del first["config"]["batch_input_shape"]
                copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
                shutil.copyfile(path, copy)
                with h5py.File(copy, "r+") as file:
                    file.attrs["model_config"] = json.dumps(model)
                path = copy
        yield path


def open_keras_model(model: keras.Model, source: Source) -> Model:
    """Trace a live Keras model for inference, with the names that its `export` gives.

    Raises:
        ModelError: it was never built, or runs on another backend than TensorFlow.
    """
    import tensorflow as tf

    specs = _input_specs(model)

    def serve(*arguments: tf.Tensor) -> object:
        return model(*arguments, training=False)

    function = tf.function(serve, input_signature=specs, autograph=False).get_concrete_function()
    return from_function(function, source, model)


def export(model: keras.Model, folder: Path) -> None:
    """Write a live Keras model as a SavedModel, its tables and their vocabularies included."""
    options = {} if _is_keras_2(model) else {"verbose": False}
    model.export(str(folder), **options)


def _is_keras_2(model: object) -> bool:
    return "tf_keras" in sys.modules and isinstance(model, sys.modules["tf_keras"].Model)


def _input_specs(model: keras.Model) -> list[object]:
    """One nested structure of TensorSpecs for each positional argument of the model's call, its first axis open."""
    import tensorflow as tf

    name = getattr(model, "name", "model")
    if _is_keras_2(model):
        specs = model.save_spec()
        if specs is None:
            raise ModelError(
                f"{name}: was never called, so its input shapes are unknown", "call it once on sample data"
            )
        return list(specs[0])
    import keras
    from keras.src.export.export_utils import get_input_signature, make_tf_tensor_spec

    if keras.backend.backend() != "tensorflow":
        raise ModelError(
            f"{name}: runs on Keras's {keras.backend.backend()} backend", "set KERAS_BACKEND=tensorflow before import"
        )
    try:
        signature = get_input_signature(model)
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{name}: its input shapes are unknown: {first_line(error)}", "call it once on data"
        ) from error
    specs = tf.nest.map_structure(make_tf_tensor_spec, signature)
    return list(specs)


def _keras_version(path: Path) -> str:
    """The version of Keras that wrote a file, `2` where it doesn't say.

    Raises:
        ModelError: it is neither format, or holds weights only.
    """
    remedy = "save it again with model.save"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return str(json.loads(archive.read("metadata.json")).get("keras_version", "2"))
        import h5py

        with h5py.File(path) as file:
            if "model_config" not in file.attrs:
                raise ModelError(f"{path}: holds weights without a model", "build the model in Python and load them")
            version = file.attrs.get("keras_version", "2")
            return version.decode() if isinstance(version, bytes) else str(version)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: is no Keras model: {first_line(error)}", remedy) from error


def _load_with_keras_2(path: Path, version: str, error: Exception) -> keras.Model:
    try:
        import tf_keras
    except ImportError as missing:
        raise ModelError(
            f"{path}: was written by Keras {version}, and Keras 3 can't read it: {first_line(error)}",
            "pip install 'graftrt[keras2]'",
        ) from missing
    try:
        return tf_keras.models.load_model(path, compile=False)
    except Exception as second:
        raise ModelError(
            f"{path}: neither Keras 3 nor Keras 2 can load it: {first_line(second)}",
            "load it in Python with its custom objects, and pass the model",
        ) from second
