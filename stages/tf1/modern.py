"""Rewrite a TensorFlow 1 graph to ops that work inside TensorFlow 2 functions.

Reference variables (`VariableV2`, whose edges carry the variable itself) become resource variables, tables with string
handles become those with resource handles. Only variables differ in meaning: an op that takes a reference reads it when
it runs, and a ReadVariableOp with the op's control inputs does the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.op_def_pb2 import OpList

_REFERENCES = {"Variable", "VariableV2"}
_PASSES = {"RefSwitch": ("Switch", 2), "RefEnter": ("Enter", 1), "RefIdentity": ("Identity", 1)}
"""Ops that hand a reference on: what hands a resource on, and its number of outputs that do."""
_SCATTERS = ("Update", "Add", "Sub", "Mul", "Div", "Min", "Max", "NdUpdate", "NdAdd", "NdSub")
_WRITES = {
    "Assign": "AssignVariableOp",
    "AssignAdd": "AssignAddVariableOp",
    "AssignSub": "AssignSubVariableOp",
    **{f"Scatter{what}": f"ResourceScatter{what}" for what in _SCATTERS},
}
_TABLES = {
    "HashTable",
    "MutableHashTable",
    "MutableHashTableOfTensors",
    "MutableDenseHashTable",
    "InitializeTable",
    "InitializeTableFromTextFile",
    "LookupTableFind",
    "LookupTableSize",
    "LookupTableInsert",
    "LookupTableImport",
    "LookupTableExport",
}


def modernize(graph_def: tf.compat.v1.GraphDef, producer: OpList, outputs: Iterable[str]) -> None:
    """Rewrite a graph in place.

    Devices, colocations and `_output_shapes` are dropped: they name machines and ops that may not be there, and old
    writers made wrong shapes.

    Args:
        producer: the ops as the graph's writer knew them (`stripped_op_list`), or empty.
        outputs: tensors whose value is wanted; a reference among them becomes its value, under the same name.
    """
    written = {op.name: op for op in producer.op}
    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        for node in nodes:
            node.device = ""
            for attribute in ("_class", "_output_shapes", "_gradient_op_type"):
                node.attr.pop(attribute, None)
            if node.op in _TABLES:
                node.op += "V2"
            _drop_new_defaults(node, written)
    _References(graph_def).resolve({output.partition(":")[0] for output in outputs})


def _drop_new_defaults(node: tf.compat.v1.NodeDef, written: dict[str, object]) -> None:
    """Remove attributes that this TensorFlow doesn't know and that say nothing but the writer's default."""
    from tensorflow.python.framework import op_def_registry

    known, writer = op_def_registry.get(node.op), written.get(node.op)
    if known is None or writer is None:
        return
    names = {attribute.name for attribute in known.attr}
    for attribute in writer.attr:  # type: ignore[attr-defined]
        if attribute.name not in names and node.attr.get(attribute.name) == attribute.default_value:
            node.attr.pop(attribute.name)


@dataclass(frozen=True, slots=True)
class _Reference:
    """An edge that carries a variable of type `dtype`: `handle` stands for it now, and holds its value once the nodes in
    `waits` have run."""

    edge: str
    handle: str
    dtype: int
    waits: tuple[str, ...] = ()


class _References:
    """Follows every reference variable to all that uses it."""

    def __init__(self, graph_def: tf.compat.v1.GraphDef) -> None:
        self._graph_def = graph_def
        self._names = {node.name for node in graph_def.node}
        self._uses: dict[str, list[tuple[tf.compat.v1.NodeDef, int]]] = {}
        for node in graph_def.node:
            for position, reference in enumerate(node.input):
                self._uses.setdefault(reference.removesuffix(":0"), []).append((node, position))
        self._pending: list[_Reference] = []

    def resolve(self, wanted: set[str]) -> None:
        """Make resource variables of all; `wanted` names the nodes whose value is asked for by name."""
        for node in [node for node in self._graph_def.node if node.op in _REFERENCES]:
            dtype = int(node.attr["dtype"].type)
            shared = node.attr["shared_name"].s.decode() or node.name
            variable = node
            if node.name in wanted:  # the name must stay with the value
                variable = self._graph_def.node.add(name=self._free(f"{node.name}/handle"))
                variable.attr["shape"].CopyFrom(node.attr["shape"])
                _become(node, "ReadVariableOp", {"dtype": dtype}, [variable.name])
            variable.op = "VarHandleOp"
            variable.attr["dtype"].type = dtype
            variable.attr["shared_name"].s = shared.encode()
            self._pending.append(_Reference(node.name, variable.name, dtype))
            while self._pending:
                edge = self._pending.pop()
                for user, position in self._uses.get(edge.edge, ()):
                    self._rewrite(user, position, edge)

    def _rewrite(self, node: tf.compat.v1.NodeDef, position: int, edge: _Reference) -> None:
        """Rewrite one user of a reference."""
        if position == 0 and node.op in _PASSES:
            node.op, count = _PASSES[node.op]
            node.attr["T"].type = _resource()
            node.input[0] = edge.handle
            for end in (node.name, *(f"{node.name}:{index}" for index in range(1, count))):
                self._pending.append(_Reference(end, end, edge.dtype, edge.waits))
        elif position == 0 and node.op in _WRITES:
            types = {"T" if "ScatterNd" in node.op else "dtype": edge.dtype}
            if "Tindices" in node.attr:
                types["Tindices"] = node.attr["Tindices"].type
            _become(node, _WRITES[node.op], types, [edge.handle, *node.input[1:], *edge.waits])
            self._pending.append(_Reference(node.name, edge.handle, edge.dtype, (f"^{node.name}",)))
        elif node.op == "Identity":
            _become(node, "ReadVariableOp", {"dtype": edge.dtype}, [edge.handle, *node.input[1:], *edge.waits])
        elif position == 0 and node.op == "IsVariableInitialized":
            _become(node, "VarIsInitializedOp", {}, [edge.handle, *node.input[1:], *edge.waits])
        elif not _takes_reference(node, position):
            controls = [reference for reference in node.input if reference.startswith("^")]
            read = self._graph_def.node.add(name=self._free(f"{node.name}/read"))
            _become(read, "ReadVariableOp", {"dtype": edge.dtype}, [edge.handle, *controls, *edge.waits])
            node.input[position] = read.name

    def _free(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _become(node: tf.compat.v1.NodeDef, op: str, types: dict[str, int], inputs: list[str]) -> None:
    node.op = op
    node.attr.clear()
    for name, value in types.items():
        node.attr[name].type = value
    del node.input[:]
    node.input.extend(inputs)


def _takes_reference(node: tf.compat.v1.NodeDef, position: int) -> bool:
    """Whether an op wants the variable itself: an optimiser's update, say, which inference never runs."""
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(node.op)
    if definition is None:
        return False
    arguments = list(definition.input_arg)
    return bool(arguments) and bool(arguments[min(position, len(arguments) - 1)].is_ref)


def _resource() -> int:
    import tensorflow as tf

    return int(tf.resource.as_datatype_enum)
