"""Open a frozen GraphDef (`.pb`, or TensorFlow.js's `.json`) and find out what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import tfjs
from stages.artifacts import Source
from stages.errors import ModelError
from stages.model import Model, first_line
from stages.tensor_names import guess_output, known, label, needed
from stages.unfuse import unfuse

if TYPE_CHECKING:
    import tensorflow as tf

_VARIABLES = {"VarHandleOp", "VariableV2", "Variable", "HashTableV2", "HashTable", "MutableHashTableV2", "IteratorV2"}


def open_graph_file(
    path: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None, also_fed: Sequence[str] = ()
) -> Model:
    """Open a frozen graph; any tensor may be named as an input if its op has no other results.

    Args:
        inputs: tensors as `op:0` or `op`; by default every Placeholder that the outputs depend on, in the file's order.
            A PlaceholderWithDefault is no input unless it is named, and keeps its default.
        outputs: likewise; by default what a `.json` names, else the result of the only op whose result nobody reads.
        also_fed: more inputs, besides those that are given or found.

    Raises:
        ModelError: the file is damaged or empty, a name is unknown, or inputs or outputs can't be guessed.
    """
    if path.suffix == tfjs.SUFFIX:
        graph_model = tfjs.read(path)
        graph_def = graph_model.graph_def
        inputs, outputs = inputs or graph_model.inputs, outputs or graph_model.outputs
    else:
        graph_def = _read(path)
    unfuse(graph_def)
    nodes = {node.name: node for node in graph_def.node}
    for node in graph_def.node:
        for reference in node.input:
            if reference.lstrip("^").partition(":")[0] not in nodes:
                raise ModelError(
                    f"{path}: is cut off: {node.name} reads {reference}, which is missing", "freeze it again"
                )
    fetched = known(path, outputs, nodes, "--outputs") if outputs else [guess_output(path, graph_def)]
    if inputs:
        fed = known(path, inputs, nodes, "--inputs")
    else:
        used = needed(nodes, fetched, ())
        fed = [f"{node.name}:0" for node in graph_def.node if node.op == "Placeholder" and node.name in used]
    fed += [tensor for tensor in known(path, also_fed, nodes, "--constant") if tensor not in fed]
    unfed = [
        name
        for name in needed(nodes, fetched, [tensor.partition(":")[0] for tensor in fed])
        if nodes[name].op == "Placeholder" and f"{name}:0" not in fed
    ]
    if unfed:
        raise ModelError(
            f"{path}: the outputs depend on {', '.join(sorted(unfed))} too", f"--inputs {' '.join([*fed, *unfed])}"
        )
    _refuse_state(path, nodes, needed(nodes, fetched, [tensor.partition(":")[0] for tensor in fed]))
    labels = tuple(label(tensor) for tensor in fed)
    fed = [_make_placeholder(path, graph_def, nodes, tensor) for tensor in fed]
    return Model(
        Source("graph_def", str(path)),
        None,
        graph_def,
        tuple(fed),
        tuple(fetched),
        labels,
        tuple(label(tensor) for tensor in fetched),
    )


def _read(path: Path) -> tf.compat.v1.GraphDef:
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    if path.name == "saved_model.pb":
        raise ModelError(f"{path}: belongs to a SavedModel", f"give the folder {path.parent}")
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ModelError(
            f"{path}: is no GraphDef, or is cut off: {first_line(error)}", "copy or freeze it again"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror}", "check the file's permissions") from error
    if not any(node.op and node.op != "NoOp" for node in graph_def.node):
        raise ModelError(f"{path}: holds an empty graph", "freeze it again, with its outputs")
    return graph_def


def _refuse_state(path: Path, nodes: dict[str, tf.compat.v1.NodeDef], used: set[str]) -> None:
    state = sorted(name for name in used if nodes[name].op in _VARIABLES)
    if state:
        raise ModelError(
            f"{path}: is not frozen: {state[0]} ({nodes[state[0]].op}) has its value outside the file",
            "give the SavedModel, or freeze the graph with its variables",
        )


def _make_placeholder(
    path: Path, graph_def: tf.compat.v1.GraphDef, nodes: dict[str, tf.compat.v1.NodeDef], tensor: str
) -> str:
    """Make a Placeholder of what makes a tensor, so that the graph can be fed there; returns its tensor.

    An op with one result becomes one itself. Of an op with several, what reads this one reads a new Placeholder instead.
    """
    import tensorflow as tf

    name = tensor.partition(":")[0]
    node = nodes[name]
    if node.op == "Placeholder":
        return tensor
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
        result = graph.get_tensor_by_name(tensor)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise ModelError(f"{path}: {tensor} can't be an input: {first_line(error)}", "name another tensor") from error
    if len(result.op.outputs) > 1:
        node = graph_def.node.add(name=graph.unique_name(tensor.replace(":", "/"), mark_as_used=False))
        for user in graph_def.node:
            user.input[:] = [node.name if _same(reference, tensor) else reference for reference in user.input]
    node.op = "Placeholder"
    del node.input[:]
    node.attr.clear()
    node.attr["dtype"].type = result.dtype.as_datatype_enum
    node.attr["shape"].shape.CopyFrom(result.shape.as_proto())
    return f"{node.name}:0"


def _same(reference: str, tensor: str) -> bool:
    return reference == tensor or (not reference.startswith("^") and f"{reference}:0" == tensor)
