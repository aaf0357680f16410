"""Freeze a model: one GraphDef without function calls and without constant variables, its large weights beside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages import saved_models, sources, storage
from stages.artifacts import Capture, FrozenGraph, Tensor
from stages.conditions import take_known_branches
from stages.constants import Variables
from stages.errors import FreezeError, ModelError
from stages.inline import Inlined, inline_calls
from stages.interface import make_constant
from stages.library import name_by_content
from stages.model import Model, Scalar, first_line, unreadable
from stages.pruning import prune, prune_library
from stages.switches import fold_switches
from stages.weights import WeightWriter

if TYPE_CHECKING:
    import tensorflow as tf

_SAVED = "source"
"""Folder, in the artifact, of the SavedModel written for a live or TensorFlow 1 model with tables or written variables."""


def freeze(
    model: object,
    out: Path,
    *,
    signature: str | None = None,
    tags: Iterable[str] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    constants: Mapping[str, Scalar] | None = None,
) -> FrozenGraph:
    """Freeze one signature of a model for inference.

    Function calls are inlined (TensorFlow 2 branches and loops stay single ops), variables become constants, and
    what no output and no side effect needs is dropped. Tables, and variables that this signature or another one of
    the same model writes, stay captured: Placeholders of dtype resource.

    Args:
        model, signature, tags, inputs, outputs, constants: as for `sources.open_model`.
        out: folder to make; it holds `graph.pb`, `weights/`, `artifact.json`, and `source/` (a SavedModel) where a live
            Keras model or module has resources that stay captured, or a TensorFlow 1 model these or several signatures.

    Raises:
        ModelError: the model can't be found, read or understood.
        FreezeError: its graph can't be frozen.
        ArtifactError: `out` exists or can't be written.
    """
    opened = sources.open_model(
        model, signature=signature, tags=tags, inputs=inputs, outputs=outputs, constants=constants
    )
    with storage.write_folder(out) as folder:
        draft = _draft(opened)
        if (draft.captures or len(opened.signatures) > 1) and opened.source.kind != "saved_model":
            opened = saved_models.save_as_saved_model(opened, folder / _SAVED)
            draft = _draft(opened)
            opened = replace(opened, source=replace(opened.source, path=_SAVED))
        frozen = _write(opened, draft, folder)
        storage.save(frozen, folder)
    return replace(frozen, folder=out)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A graph without calls, whose reads of constant variables are ordinary ops on the Placeholders in `values`."""

    graph_def: tf.compat.v1.GraphDef
    outputs: tuple[str, ...]
    side_effects: tuple[str, ...]
    values: dict[str, tf.Tensor]
    """Placeholder to what it stands for: a tensor, or the handle of a variable."""
    captures: tuple[Capture, ...]


def _draft(model: Model) -> _Draft:
    import tensorflow as tf

    try:
        if model.function is None:
            inlined = _folded(model, inline_calls(model.graph_def, model.outputs, ()))
            return _Draft(inlined.graph_def, inlined.outputs, (), {}, ())
        graph = model.function.graph
        with graph.as_default():  # functions that are called by name are found through the default graph
            must_run = [op.name for op in graph.control_outputs]
            inlined = inline_calls(graph.as_graph_def(add_shapes=True), model.outputs, must_run)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise _failure(model, error) from error
    inlined = _folded(model, inlined)
    variables = Variables(inlined.graph_def)
    elsewhere = _written(model.others)
    values: dict[str, tf.Tensor] = {}
    captures: list[Capture] = []
    for index, (tensor, placeholder) in enumerate(graph.captures):
        node = placeholder.op.name
        content = _content(tensor)
        if content is None or (
            tensor.dtype == tf.resource and (id(tensor) in elsewhere or not variables.only_read(node))
        ):
            captures.append(Capture(node, index))
            continue
        values[node] = tensor
        if tensor.dtype == tf.resource:
            variables.read_as_value(node, *content)
    return _Draft(inlined.graph_def, inlined.outputs, inlined.side_effects, values, tuple(captures))


def _folded(model: Model, inlined: Inlined) -> Inlined:
    """The graph with its fixed inputs as constants, without the branches that these rule out."""
    for fixed in model.fixed:
        make_constant(inlined.graph_def, fixed)
    while take_known_branches(inlined.graph_def):
        inlined = inline_calls(inlined.graph_def, inlined.outputs, inlined.side_effects)
    graph_def = inlined.graph_def
    outputs = fold_switches(graph_def, inlined.outputs)
    present = {node.name for node in graph_def.node}
    effects = tuple(name for name in inlined.side_effects if name in present)
    return Inlined(prune(graph_def, (*outputs, *model.inputs, *effects)), outputs, effects)


def _content(tensor: tf.Tensor) -> tuple[int, tuple[int, ...]] | None:
    """DataType and shape of a captured tensor or variable; None for tables and other resources."""
    import tensorflow as tf
    from tensorflow.python.ops import resource_variable_ops

    if tensor.dtype == tf.variant:
        return None
    if tensor.dtype != tf.resource:
        return int(tensor.dtype.as_datatype_enum), tuple(tensor.shape)
    data = resource_variable_ops.get_eager_safe_handle_data(tensor)
    if data is None or not data.is_set or len(data.shape_and_type) != 1:
        return None
    shape = tf.TensorShape(data.shape_and_type[0].shape)
    if not shape.is_fully_defined():
        shape = tf.raw_ops.VariableShape(input=tensor).numpy()
    return int(data.shape_and_type[0].dtype), tuple(int(size) for size in shape)


def _written(functions: Iterable[tf.types.experimental.ConcreteFunction]) -> set[int]:
    """Identities of the resource handles that any of the functions does more with than read."""
    import tensorflow as tf

    found: set[int] = set()
    for function in functions:
        variables = Variables(function.graph.as_graph_def())
        for tensor, placeholder in function.graph.captures:
            if tensor.dtype == tf.resource and not variables.only_read(placeholder.op.name):
                found.add(id(tensor))
    return found


def _write(model: Model, draft: _Draft, folder: Path) -> FrozenGraph:
    """Write `graph.pb` and the large weights, and describe them."""
    graph_def = draft.graph_def
    prune_library(graph_def)
    name_by_content(graph_def)
    values = _rename_values(graph_def, draft.values)
    writer = WeightWriter(folder)
    for node in graph_def.node:
        if node.name in values:
            value = _read(model, values[node.name])
            writer.put(node, np.asarray(value), value.dtype)
        elif node.op == "Const":
            writer.move(node)
    _drop_gradients(graph_def)
    _order_controls(graph_def)
    imported = _import(model, graph_def)
    _keep_shapes(graph_def, imported)
    (folder / "graph.pb").write_bytes(graph_def.SerializeToString(deterministic=True))
    names = {node.name for node in graph_def.node}
    return FrozenGraph(
        folder,
        model.source,
        tuple(_tensor(imported, name) for name in model.inputs),
        tuple(_tensor(imported, name) for name in draft.outputs),
        model.input_names,
        model.output_names,
        writer.weights,
        tuple(capture for capture in draft.captures if capture.node in names),
        draft.side_effects,
    )


def _rename_values(graph_def: tf.compat.v1.GraphDef, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Give the values that a loaded SavedModel calls `unknown`, `unknown_0`, … names of their own, in place.

    TensorFlow uses these for the captures of any function that it loads: a constant of that name in a stitched graph
    takes the shape of a capture.
    """
    taken = {node.name for node in graph_def.node}
    renamed: dict[str, str] = {}
    for name in values:
        if name.startswith("unknown") and name in taken:
            renamed[name] = next(n for i in itertools.count(len(renamed)) if (n := f"graftrt/values/{i}") not in taken)
            taken.add(renamed[name])
    for node in graph_def.node:
        node.name = renamed.get(node.name, node.name)
        for position, reference in enumerate(node.input):
            source, colon, output = reference.lstrip("^").partition(":")
            if source in renamed:
                node.input[position] = "^" * reference.startswith("^") + renamed[source] + colon + output
    return {renamed.get(name, name): value for name, value in values.items()}


def _read(model: Model, tensor: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf
    from tensorflow.python.ops import resource_variable_ops

    if tensor.dtype != tf.resource:
        return tensor
    if not tf.raw_ops.VarIsInitializedOp(resource=tensor):
        raise FreezeError(f"{_subject(model)}: a variable has no value", "initialise or restore it first")
    data = resource_variable_ops.get_eager_safe_handle_data(tensor)
    return tf.raw_ops.ReadVariableOp(resource=tensor, dtype=data.shape_and_type[0].dtype)


def _import(model: Model, graph_def: tf.compat.v1.GraphDef) -> tf.Graph:
    """The graph as TensorFlow reads it; contradictory `_output_shapes` (old writers made some up) are dropped."""
    import tensorflow as tf

    for attempt in (1, 2):
        graph = tf.Graph()
        try:
            with graph.as_default():
                tf.graph_util.import_graph_def(graph_def, name="")
            break
        except (KeyError, ValueError, tf.errors.OpError) as error:
            if attempt == 2 or "_output_shapes" not in str(error):
                raise _failure(model, error) from error
            for node in graph_def.node:
                node.attr.pop("_output_shapes", None)
    return graph


def _drop_gradients(graph_def: tf.compat.v1.GraphDef) -> None:
    """Forget custom gradients: they are Python functions of the process that built the model, and nobody trains this."""
    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        for node in nodes:
            node.attr.pop("_gradient_op_type", None)


def _order_controls(graph_def: tf.compat.v1.GraphDef) -> None:
    """Sort control inputs, whose order means nothing and differs from one loading of a SavedModel to the next."""
    for node in graph_def.node:
        controls = sorted(reference for reference in node.input if reference.startswith("^"))
        if len(controls) > 1:
            data = [reference for reference in node.input if not reference.startswith("^")]
            node.input[:] = [*data, *controls]


def _keep_shapes(graph_def: tf.compat.v1.GraphDef, graph: tf.Graph) -> None:
    """Set `_output_shapes` on every node whose results have shapes."""
    import tensorflow as tf

    for node in graph_def.node:
        node.attr.pop("_output_shapes", None)
        results = graph.get_operation_by_name(node.name).outputs
        if node.op in ("Const", "Placeholder") or any(result.dtype in (tf.resource, tf.variant) for result in results):
            continue
        if results:
            node.attr["_output_shapes"].list.shape.extend(result.shape.as_proto() for result in results)


def _tensor(graph: tf.Graph, name: str) -> Tensor:
    tensor = graph.get_tensor_by_name(name)
    return Tensor(name, tensor.dtype.name, None if tensor.shape.rank is None else tuple(tensor.shape.as_list()))


def _subject(model: Model) -> str:
    return model.source.path or (model.function.graph.name if model.function is not None else "model")


def _failure(model: Model, error: Exception) -> ModelError | FreezeError:
    text = first_line(error)
    if "Op type not registered" in text:
        return unreadable(Path(_subject(model)), error, "")
    return FreezeError(f"{_subject(model)}: TensorFlow refuses the frozen graph: {text}", "report it with the model")
