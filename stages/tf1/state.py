"""Restore the variables and tables of a TensorFlow 1 graph as objects of TensorFlow 2."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.errors import ModelError
from stages.model import unreadable
from stages.pruning import prune

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.protobuf.saver_pb2 import SaverDef

    from stages.compare import Array

_FILLS = {
    "AssignVariableOp",
    "InitializeTableV2",
    "InitializeTableFromTextFileV2",
    "LookupTableImportV2",
    "LookupTableInsertV2",
}
"""Ops that give the variable or table of their first input its content."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a MetaGraph's state is.

    Attributes:
        prefix: of the checkpoint's files, None where there is none.
        saver: the ops that restore it.
        initializers: ops that fill tables, to be run after restoring.
        assets: tensors to feed while they run, with the path of each file.
    """

    prefix: str | None
    saver: SaverDef
    initializers: tuple[str, ...] = ()
    assets: Mapping[str, str] = field(default_factory=dict)


def restore(
    subject: str, graph_def: tf.compat.v1.GraphDef, state: Iterable[str], checkpoint: Checkpoint, owner: tf.Module
) -> dict[str, tf.Tensor]:
    """Make each of the graph's `state` nodes anew, as an object that `owner` keeps.

    Only what fills these nodes is run, not the whole restoring and initialising: neither an optimiser's slots nor
    ops that this TensorFlow lacks are in its way.

    Returns:
        The resource of each node, by its name.

    Raises:
        ModelError: the checkpoint does not hold a variable, or TensorFlow can't read it.
    """
    import tensorflow as tf

    nodes = {node.name: node for node in graph_def.node}
    shared: dict[tuple[str, str], str] = {}
    twins = {name: shared.setdefault(_identity(nodes[name]), name) for name in state}
    wanted = set(twins.values())
    if not wanted:
        return {}
    restorers = _fillers(nodes, [checkpoint.saver.restore_op_name], shared) if checkpoint.prefix else []
    fillers = _fillers(nodes, checkpoint.initializers, shared)
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(prune(graph_def, [*restorers, *fillers, *wanted]), name="")
            reads = {
                name: tf.raw_ops.ReadVariableOp(
                    resource=graph.get_tensor_by_name(f"{name}:0"), dtype=nodes[name].attr["dtype"].type
                )
                for name in sorted(wanted)
                if nodes[name].op == "VarHandleOp"
            }
        config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
        # Not as the default session, whose graph TensorFlow would put the new objects into.
        with contextlib.closing(tf.compat.v1.Session(graph=graph, config=config)) as session:
            if restorers:
                session.run(restorers, {checkpoint.saver.filename_tensor_name: checkpoint.prefix})
            present = {node.name for node in graph.as_graph_def().node}
            feeds = {name: path for name, path in checkpoint.assets.items() if name.partition(":")[0] in present}
            if fillers:
                session.run(fillers, feeds)
            made = {}
            for name in sorted(wanted):
                if name in reads:
                    value = _value(nodes[name], session, reads[name], checkpoint)
                    made[name] = tf.Variable(value, trainable=False, dtype=reads[name].dtype)
                else:
                    mine = [nodes[f] for f in fillers if shared[_identity(_target(nodes, f))] == name]
                    made[name] = _table(session, nodes[name], mine, feeds)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise unreadable(Path(subject), error, "check that all files of the checkpoint are there") from error
    for name in set(made) - set(reads):
        _tell_types(made[name].resource_handle, nodes[name])
    owner.kept = [made[name] for name in sorted(reads)]
    owner.tables = [made[name] for name in sorted(set(made) - set(reads))]
    handles = {name: value.handle if name in reads else value.resource_handle for name, value in made.items()}
    return {name: handles[twin] for name, twin in twins.items()}


def _identity(node: tf.compat.v1.NodeDef) -> tuple[str, str]:
    """Nodes of one shared name are one variable."""
    return node.op, node.attr["shared_name"].s.decode() or node.name


def _fillers(
    nodes: Mapping[str, tf.compat.v1.NodeDef], roots: Sequence[str], wanted: Mapping[tuple[str, str], str]
) -> list[str]:
    """The ops behind `roots` that fill a variable or table with one of the wanted identities."""
    pending = [root.partition(":")[0] for root in roots]
    seen: set[str] = set()
    found = []
    while pending:
        name = pending.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        if nodes[name].op in _FILLS and _identity(_target(nodes, name)) in wanted:
            found.append(name)
        pending.extend(reference.lstrip("^").partition(":")[0] for reference in nodes[name].input)
    return sorted(found)


def _target(nodes: Mapping[str, tf.compat.v1.NodeDef], filler: str) -> tf.compat.v1.NodeDef:
    """What an op fills."""
    return nodes[nodes[filler].input[0].partition(":")[0]]


def _value(node: tf.compat.v1.NodeDef, session: tf.compat.v1.Session, read: tf.Tensor, checkpoint: Checkpoint) -> Array:
    """A variable's value; where the graph has no saver that could restore it, the checkpoint's entry of its name."""
    import tensorflow as tf

    name = _identity(node)[1]
    if checkpoint.prefix and not checkpoint.saver.restore_op_name:
        reader = tf.train.load_checkpoint(checkpoint.prefix)
        if reader.has_tensor(name):
            found: Array = reader.get_tensor(name)
            return found
    try:
        value: Array = session.run(read)
    except tf.errors.FailedPreconditionError as error:
        raise ModelError(f"the variable {name} has no value", "give the checkpoint that holds it") from error
    return value


def _table(
    session: tf.compat.v1.Session,
    node: tf.compat.v1.NodeDef,
    fillers: Sequence[tf.compat.v1.NodeDef],
    feeds: Mapping[str, str],
) -> tf.lookup.StaticHashTable | tf.lookup.experimental.MutableHashTable:
    """The table as one of tf.lookup, with the text file that fills it or with the entries that it has.

    Its default value is never used: lookups in the graph bring their own.
    """
    import tensorflow as tf

    key, value = (tf.as_dtype(node.attr[name].type) for name in ("key_dtype", "value_dtype"))
    shape = [dim.size for dim in node.attr["value_shape"].shape.dim]
    default = tf.constant("" if value == tf.string else 0, value, shape)
    text = [filler for filler in fillers if filler.op == "InitializeTableFromTextFileV2"]
    if text:
        path = session.run(f"{text[0].input[1].removesuffix(':0')}:0", feeds)
        options = text[0].attr
        source = tf.lookup.TextFileInitializer(
            tf.compat.as_str(np.asarray(path).item()),
            key,
            options["key_index"].i,
            value,
            options["value_index"].i,
            vocab_size=options["vocab_size"].i if options["vocab_size"].i > 0 else None,
            delimiter=options["delimiter"].s.decode() or "\t",
            value_index_offset=options["offset"].i,
        )
        return tf.lookup.StaticHashTable(source, default)
    with session.graph.as_default():
        handle = session.graph.get_tensor_by_name(f"{node.name}:0")
        entries = tf.raw_ops.LookupTableExportV2(table_handle=handle, Tkeys=key, Tvalues=value)
    keys, values = session.run(entries)
    if node.op == "HashTableV2":
        return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values, key, value), default)
    if node.op == "MutableDenseHashTableV2":
        empty, deleted = (session.run(f"{name.removesuffix(':0')}:0") for name in node.input[:2])
        table = tf.lookup.experimental.DenseHashTable(key, value, default, empty, deleted)
        used = np.not_equal(keys, empty) & np.not_equal(keys, deleted)
        keys, values = keys[used], values[used]
    else:
        table = tf.lookup.experimental.MutableHashTable(key, value, default)
    table.insert(tf.constant(keys, key), tf.constant(values, value))
    return table


def _tell_types(handle: tf.Tensor, node: tf.compat.v1.NodeDef) -> None:
    """Say what a table holds where it is captured: without, the shape of what is looked up in it would be unknown."""
    from tensorflow.core.framework.cpp_shape_inference_pb2 import CppShapeInferenceResult

    data = CppShapeInferenceResult.HandleData(is_set=True)
    data.shape_and_type.add(dtype=node.attr["key_dtype"].type).shape.SetInParent()
    data.shape_and_type.add(dtype=node.attr["value_dtype"].type).shape.CopyFrom(node.attr["value_shape"].shape)
    handle._handle_data = data
