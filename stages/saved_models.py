"""Open SavedModels, find their resources again, and write live models as SavedModels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages import signature_defs
from stages.artifacts import FrozenGraph, Source
from stages.errors import ModelError
from stages.interface import fix_inputs, restrict
from stages.live_models import functions
from stages.model import DEFAULT_SIGNATURE, KINDS, Model, close_matches, first_line, from_function, unreadable

if TYPE_CHECKING:
    import tensorflow as tf


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


def open_saved_model(path: Path, signature: str | None, tags: Iterable[str] | None) -> Model:
    """Open one signature of a SavedModel.

    Args:
        signature: by default `serving_default`, or the only one there is.
        tags: by default `serve`, or those of the only graph there is.

    Raises:
        ModelError: it is damaged, has no such signature or tags, or uses an op that is not loaded.
    """
    from stages.tf1 import opening

    message = signature_defs.read(path)
    meta = signature_defs.choose(path, message, tags)
    tags = tuple(meta.meta_info_def.tags)
    if not (len(message.meta_graphs) == 1 and meta.HasField("object_graph_def")):  # as TensorFlow decides
        chosen = _choose(path, opening.signature_names(meta), signature)
        return opening.open_saved_model(path, meta, chosen, tags)
    loaded = load_saved_model(path, tags)
    signatures = getattr(loaded, "signatures", {})
    chosen = _choose(path, list(signatures), signature)
    others = [function for name, function in signatures.items() if name != chosen]
    model = from_function(signatures[chosen], Source("saved_model", str(path), chosen, tags), loaded, others)
    return signature_defs.with_own_names(model, meta.signature_def[chosen].inputs)


def reopen(frozen: FrozenGraph) -> Reopened:
    """Load the SavedModel that a frozen graph came from and find its captured resources again.

    Raises:
        ModelError: the SavedModel is gone, has changed, or the graph did not come from one.
    """
    if frozen.source.kind != "saved_model" or frozen.source.path is None:
        raise ModelError(f"{frozen.folder}: comes from no SavedModel", "freeze a SavedModel")
    path = frozen.folder / frozen.source.path
    loaded = load_saved_model(path, frozen.source.tags)
    signatures = getattr(loaded, "signatures", {})
    function = signatures[_choose(path, list(signatures), frozen.source.signature)]
    captures = function.graph.captures
    variables = {weight.node: weight.capture for weight in frozen.weights if weight.capture is not None}
    if any(index >= len(captures) for index in (*(c.index for c in frozen.captures), *variables.values())):
        raise ModelError(f"{path}: is not the model that was frozen", "freeze it again")
    captured = tuple((capture.node, captures[capture.index][0]) for capture in frozen.captures)
    handles = {node: captures[index][0] for node, index in variables.items()}
    return Reopened(loaded, dict(signatures), captured, handles)


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
    source = model.source
    original = None if source.path is None else Path(source.path)
    names = {source.signature: (*model.input_names, *(fixed.name for fixed in model.fixed))}
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=not model.signatures)
    try:
        if keras_models.is_keras(model.owner):
            keras_models.export(model.owner, folder)
        else:
            signatures = model.signatures or functions(model.owner)
            tf.saved_model.save(model.owner, str(folder), signatures=signatures, options=options)
            signature_defs.restore_details(folder, source.tags, original, names)
    except (AssertionError, TypeError, ValueError, tf.errors.OpError) as error:
        raise ModelError(
            f"the model can't be saved: {first_line(error)}", "save it as a SavedModel yourself"
        ) from error
    saved = open_saved_model(folder, source.signature, source.tags)
    constants = {fixed.name: fixed.value for fixed in model.fixed}
    return restrict(fix_inputs(saved, constants), None, model.output_names)


def load_saved_model(path: Path, tags: Iterable[str] | None = None) -> object:
    """Load a SavedModel.

    Raises:
        ModelError: it is damaged, has no such tags, or uses an op that is not loaded.
    """
    import tensorflow as tf

    if not signature_defs.is_saved_model(path):
        raise ModelError(f"{path}: holds no SavedModel (saved_model.pb)", f"give {KINDS}")
    try:
        return tf.saved_model.load(str(path), tags=None if tags is None else list(tags))
    except Exception as error:
        raise unreadable(path, error, "save the model again with tf.saved_model.save") from error


def _choose(path: Path, names: list[str], signature: str | None) -> str:
    chosen = signature or (names[0] if len(names) == 1 else DEFAULT_SIGNATURE)
    if not names:
        raise ModelError(f"{path}: has no signatures", "save it with tf.saved_model.save(…, signatures=…)")
    if chosen not in names:
        raise ModelError(f"{path}: has no signature {chosen}", f"--signature with {close_matches(chosen, names)}")
    return chosen
