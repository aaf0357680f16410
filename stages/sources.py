"""Open whatever the user calls a model: a path, `keras:NAME`, a live Keras model, module or function."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import FrozenGraph, Source
from stages.errors import ModelError
from stages.model import Model, close_matches, first_line, from_function, unreadable

if TYPE_CHECKING:
    import tensorflow as tf

DEFAULT_SIGNATURE = "serving_default"
_KINDS = "a SavedModel folder, a .keras, .h5, .hdf5 or frozen .pb file, or keras:NAME"


@dataclass(frozen=True, slots=True)
class Reopened:
    """The source of a frozen graph, loaded again, for putting a graph back around its resources.

    Attributes:
        owner: the loaded SavedModel; attach it to the module to be saved, it owns tables, variables and assets.
        signatures: all signatures of the SavedModel by name.
        captured: (Placeholder node of the frozen graph, resource tensor) for every `FrozenGraph.captures`, in order.
        variables: the handles of the variables that became weights, by the weight's node.
    """

    owner: object
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction]
    captured: tuple[tuple[str, tf.Tensor], ...]
    variables: Mapping[str, tf.Tensor]


def open_model(
    model: object,
    *,
    signature: str | None = None,
    tags: Iterable[str] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> Model:
    """Open a model for inference.

    Args:
        model: a path (SavedModel folder, `.keras`, `.h5`, `.hdf5`, frozen `.pb`); `keras:NAME` for an architecture of
            keras.applications with seeded random weights, `keras:NAME@SIZE` for SIZE × SIZE images; a live Keras model
            or tf.Module (`signature` names one of its functions), a tf.function with an input signature, or a
            concrete function.
        signature: SavedModel signature, by default `serving_default` or the only one there is.
        tags: SavedModel tags, by default `serve`, or those of the only graph there is.
        inputs, outputs: for a .pb its tensors (guessed where unambiguous); else a choice among the signature's names
            (outputs only: a function needs all of its inputs).

    Raises:
        ModelError: there is no such model, or it can't be read; the message says what would help.
    """
    if isinstance(model, (str, Path)):
        opened = _open_path(str(model), signature, tags, inputs, outputs)
    else:
        opened = _open_live(model, signature)
    return opened if opened.function is None else _choose(opened, inputs, outputs)


def reopen(frozen: FrozenGraph) -> Reopened:
    """Load the SavedModel that a frozen graph came from and find its captured resources again.

    Raises:
        ModelError: the SavedModel is gone, has changed, or the graph did not come from one.
    """
    if frozen.source.kind != "saved_model" or frozen.source.path is None:
        raise ModelError(f"{frozen.folder}: comes from no SavedModel", "freeze a SavedModel")
    path = frozen.folder / frozen.source.path
    loaded = load_saved_model(path, frozen.source.tags)
    function = _signature(loaded, path, frozen.source.signature)
    captures = function.graph.captures
    variables = {weight.node: weight.capture for weight in frozen.weights if weight.capture is not None}
    if any(index >= len(captures) for index in (*(c.index for c in frozen.captures), *variables.values())):
        raise ModelError(f"{path}: is not the model that was frozen", "freeze it again")
    captured = tuple((capture.node, captures[capture.index][0]) for capture in frozen.captures)
    handles = {node: captures[index][0] for node, index in variables.items()}
    return Reopened(loaded, dict(loaded.signatures), captured, handles)  # type: ignore[attr-defined]


def save_as_saved_model(model: Model, folder: Path) -> Model:
    """Write the owner of a live model as a SavedModel, and open that in its place.

    Raises:
        ModelError: the owner is unknown (a bare function), or TensorFlow can't save it.
    """
    import tensorflow as tf

    from stages import keras_models

    if model.owner is None:
        raise ModelError(
            f"{model.source.path or 'the function'}: uses tables or variables that only a SavedModel can keep",
            "save the object that owns them with tf.saved_model.save(…, signatures=…), and give that folder",
        )
    signature = model.source.signature
    try:
        if keras_models.is_keras(model.owner):
            signature = DEFAULT_SIGNATURE
            keras_models.export(model.owner, folder)
        else:
            tf.saved_model.save(model.owner, str(folder), signatures=_functions(model.owner))
    except (AssertionError, TypeError, ValueError, tf.errors.OpError) as error:
        raise ModelError(
            f"the model can't be saved: {first_line(error)}", "save it as a SavedModel yourself"
        ) from error
    return _choose(_open_saved_model(folder, signature, None), None, model.output_names)


def load_saved_model(path: Path, tags: Iterable[str] | None = None) -> object:
    """Load a SavedModel.

    Raises:
        ModelError: it is damaged, has no such tags, or uses an op that is not loaded.
    """
    import tensorflow as tf

    if not (path / "saved_model.pb").exists() and not (path / "saved_model.pbtxt").exists():
        raise ModelError(f"{path}: holds no SavedModel (saved_model.pb)", f"give {_KINDS}")
    try:
        return tf.saved_model.load(str(path), tags=None if tags is None else list(tags))
    except Exception as error:
        raise unreadable(path, error, "save the model again with tf.saved_model.save") from error


def _open_path(
    text: str,
    signature: str | None,
    tags: Iterable[str] | None,
    inputs: Sequence[str] | None,
    outputs: Sequence[str] | None,
) -> Model:
    from stages import graph_files, keras_models

    if text.startswith("keras:"):
        return keras_models.application(text.removeprefix("keras:"))
    path = Path(text).expanduser()
    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises on names that are too long or may not be looked at
        raise ModelError(f"{path}: no such file or folder", f"give {_KINDS}")
    path = path.resolve()
    if path.is_dir():
        return _open_saved_model(path, signature, tags)
    if path.suffix == ".pb":
        return graph_files.open_graph_file(path, inputs, outputs)
    if path.suffix in keras_models.SUFFIXES:
        return keras_models.open_keras_file(path)
    if path.suffix == ".meta":
        raise ModelError(
            f"{path}: TensorFlow 1 checkpoints are not supported yet", "save it as a SavedModel or a frozen .pb"
        )
    raise ModelError(f"{path}: is not a model that GraftRT knows", f"give {_KINDS}")


def _open_saved_model(path: Path, signature: str | None, tags: Iterable[str] | None) -> Model:
    tags = tuple(tags) if tags is not None else _default_tags(path)
    loaded = load_saved_model(path, tags)
    names = list(getattr(loaded, "signatures", ()))
    chosen = signature or (names[0] if len(names) == 1 else DEFAULT_SIGNATURE)
    function = _signature(loaded, path, chosen)
    others = [loaded.signatures[name] for name in names if name != chosen]  # type: ignore[attr-defined]
    source = Source("saved_model", str(path), chosen, tags)
    return from_function(function, source, loaded, others)


def _default_tags(path: Path) -> tuple[str, ...]:
    """The tags of a SavedModel that holds one graph only, else `serve`."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    with contextlib.suppress(OSError, DecodeError):  # loading it says better what is wrong
        message.ParseFromString((path / "saved_model.pb").read_bytes())
    if len(message.meta_graphs) != 1:
        return ("serve",)
    return tuple(message.meta_graphs[0].meta_info_def.tags)


def _signature(loaded: object, path: Path, name: str) -> tf.types.experimental.ConcreteFunction:
    signatures = getattr(loaded, "signatures", {})
    if name not in signatures:
        raise ModelError(f"{path}: has no signature {name}", f"--signature with {close_matches(name, signatures)}")
    return signatures[name]


def _open_live(model: object, signature: str | None) -> Model:
    import tensorflow as tf

    from stages import keras_models

    source = Source("function", None, signature or DEFAULT_SIGNATURE)
    if keras_models.is_keras(model):
        return keras_models.open_keras_model(model, Source("keras", None))
    if isinstance(model, tf.types.experimental.ConcreteFunction):
        return from_function(model, source)
    if isinstance(model, tf.types.experimental.GenericFunction):
        return from_function(_trace(model), source)
    if isinstance(model, tf.Module):
        functions = _functions(model)
        if signature is None and len(functions) == 1:
            signature = next(iter(functions))
        if signature not in functions:
            raise ModelError(
                f"{type(model).__name__}: has no tf.function {signature or ''} with an input signature".replace(
                    "  ", " "
                ),
                f"signature={close_matches(signature or '', functions)}",
            )
        others = [_trace(function) for name, function in functions.items() if name != signature]
        return from_function(_trace(functions[signature]), replace(source, signature=signature), model, others)
    raise ModelError(f"{type(model).__name__}: is not a model", f"give {_KINDS}, a Keras model or a tf.function")


def _functions(module: object) -> dict[str, tf.types.experimental.GenericFunction]:
    """The tf.functions of a module that have an input signature, by attribute name."""
    import tensorflow as tf

    return {
        name: value
        for name in dir(module)
        if isinstance(value := getattr(module, name, None), tf.types.experimental.GenericFunction)
        and getattr(value, "input_signature", None) is not None
    }


def _trace(function: tf.types.experimental.GenericFunction) -> tf.types.experimental.ConcreteFunction:
    try:
        return function.get_concrete_function()
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"{getattr(function, '__name__', 'tf.function')}: has no input signature: {first_line(error)}",
            "declare it with tf.function(input_signature=…), or pass f.get_concrete_function(…)",
        ) from error


def _choose(model: Model, inputs: Sequence[str] | None, outputs: Sequence[str] | None) -> Model:
    """Restrict a signature to the outputs asked for; `inputs` may only repeat all of its inputs."""
    for name in inputs or ():
        if name not in (*model.input_names, *model.inputs):
            raise ModelError(f"{name}: no such input", f"--inputs with {close_matches(name, model.input_names)}")
    if inputs is not None and len(set(inputs)) < len(model.inputs):
        raise ModelError(
            f"inputs {', '.join(inputs)}: the signature needs more", f"all of {', '.join(model.input_names)}"
        )
    if outputs is None:
        return model
    indices = []
    for name in outputs:
        known = model.output_names if name in model.output_names else model.outputs
        if name not in known:
            raise ModelError(f"{name}: no such output", f"--outputs with {close_matches(name, model.output_names)}")
        indices.append(known.index(name))
    return replace(
        model,
        outputs=tuple(model.outputs[index] for index in indices),
        output_names=tuple(model.output_names[index] for index in indices),
    )
