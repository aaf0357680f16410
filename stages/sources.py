"""Open whatever the user calls a model: a path, `keras:NAME`, a live Keras model, module or function."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stages import checkpoints, live_models, tfjs
from stages.errors import ModelError
from stages.interface import fix_inputs, restrict
from stages.model import DEFAULT_SIGNATURE, KINDS, Model, Scalar


def open_model(
    model: object,
    *,
    signature: str | None = None,
    tags: Iterable[str] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    constants: Mapping[str, Scalar] | None = None,
) -> Model:
    """Open a model for inference.

    Args:
        model: a path (SavedModel folder, `.keras`, `.h5`, `.hdf5`, frozen `.pb`, `model.json` of TensorFlow.js, `.meta`
            of a TensorFlow 1 checkpoint, or a folder that holds such checkpoints); `keras:NAME` for an architecture of
            keras.applications with seeded random weights, `keras:NAME@SIZE` for SIZE × SIZE images; a live Keras model
            or tf.Module (`signature` names one of its functions), a tf.function with an input signature, or a
            concrete function.
        signature: SavedModel signature, by default `serving_default` or the only one there is.
        tags: SavedModel tags, by default `serve`, or those of the only graph there is.
        inputs, outputs: for a .pb or a checkpoint its tensors (guessed where unambiguous); else a choice among the
            signature's names (outputs only: a function needs all of its inputs).
        constants: inputs that are none any more, with the value that they always have (`is_training`: False).

    Raises:
        ModelError: there is no such model, or it can't be read; the message says what would help.
    """
    constants = constants or {}
    if isinstance(model, (str, Path)):
        graph = _open_graph(str(model), inputs, outputs, tuple(constants))
        if graph is not None:
            _refuse_signature(str(model), signature, tags)
            return fix_inputs(graph, constants)
        opened = _open_path(str(model), signature, tags)
    else:
        if tags is not None:
            raise ModelError(f"{type(model).__name__}: has no tags", "leave them out: only SavedModels have some")
        opened = live_models.open_live(model, signature)
    return restrict(fix_inputs(opened, constants), inputs, outputs)


def _open_graph(
    text: str, inputs: Sequence[str] | None, outputs: Sequence[str] | None, also_fed: tuple[str, ...]
) -> Model | None:
    """The model in a file whose inputs and outputs are tensors; None for any other model."""
    path = Path(text).expanduser()
    if path.suffix in (".pb", tfjs.SUFFIX) and os.path.isfile(path):  # noqa: PTH113 - as for _exists
        from stages import graph_files

        return graph_files.open_graph_file(path.resolve(), inputs, outputs, also_fed)
    file = checkpoints.find(path)
    if file is not None:
        from stages.tf1 import opening

        return opening.open_checkpoint(file, inputs, outputs, also_fed)
    return None


def _open_path(text: str, signature: str | None, tags: Iterable[str] | None) -> Model:
    from stages import keras_models, saved_models

    if text.startswith("keras:"):
        _refuse_signature(text, signature, tags)
        return keras_models.application(text.removeprefix("keras:"))
    path = Path(text).expanduser()
    if not _exists(path):
        raise ModelError(f"{path}: no such file or folder", f"give {KINDS}")
    path = path.resolve()
    if path.is_dir():
        return saved_models.open_saved_model(path, signature, tags)
    if path.suffix in keras_models.SUFFIXES:
        _refuse_signature(text, signature, tags)
        return keras_models.open_keras_file(path)
    raise ModelError(f"{path}: is not a model that GraftRT knows", f"give {KINDS}")


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises on names that are too long or may not be looked at


def _refuse_signature(model: str, signature: str | None, tags: Iterable[str] | None) -> None:
    """Only SavedModels have signatures and tags; any other model gets one `serving_default`."""
    if signature not in (None, DEFAULT_SIGNATURE):
        raise ModelError(f"{model}: has no signatures, so there is no {signature}", "leave --signature out")
    if tags is not None:
        raise ModelError(f"{model}: has no tags", "leave --tags out")
