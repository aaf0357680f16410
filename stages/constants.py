"""Turn captured variables into constants, inside branches and loops too.

TensorFlow's `convert_variables_to_constants_v2` fails where a function writes a variable, leaves `ResourceGather`
in loop bodies unconverted and copies each value into a protobuf. Here a variable becomes a constant only if all
that ever happens to its handle is understood; any other stays a captured resource.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.function_pb2 import FunctionDef

_READS = {"ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VariableShape"}
_CALLERS = {
    "PartitionedCall": ("f", "Tin", 0),
    "StatefulPartitionedCall": ("f", "Tin", 0),
    "If": ("then_branch else_branch", "Tin", 1),
    "StatelessIf": ("then_branch else_branch", "Tin", 1),
    "Case": ("branches", "Tin", 1),
    "StatelessCase": ("branches", "Tin", 1),
    "While": ("cond body", "T", 0),
    "StatelessWhile": ("cond body", "T", 0),
}
"""Ops that hand their inputs on to functions: the attributes that name these, the one with the inputs' types, and
the position of the first input handed on."""
_WHILE = {"While", "StatelessWhile"}
_PASSES = {"Identity": 1, "Switch": 2, "Enter": 1}
"""Ops that hand their first input on, and to how many outputs: TensorFlow 1 branches and loops are made of these."""


class _Scope:
    """The nodes of a graph, or of a function's body, with the places where each tensor is read."""

    def __init__(self, nodes: MutableSequence[tf.compat.v1.NodeDef], function: FunctionDef | None = None) -> None:
        self.nodes = nodes
        self.function = function
        self._uses: dict[tuple[str, int], list[tuple[tf.compat.v1.NodeDef, int]]] = {}
        for node in nodes:
            for position, reference in enumerate(node.input):
                self._uses.setdefault(_key(reference), []).append((node, position))

    def uses(self, tensor: tuple[str, int]) -> list[tuple[tf.compat.v1.NodeDef, int]]:
        return self._uses.get(tensor, [])

    def returned(self, tensor: tuple[str, int]) -> list[int]:
        """At which positions a function returns the tensor."""
        if self.function is None:
            return []
        names = [output.name for output in self.function.signature.output_arg]
        return [index for index, name in enumerate(names) if _key(self.function.ret[name]) == tensor]


class Variables:
    """The captured variables of one GraphDef, as Placeholders for their handles; changes the graph in place."""

    def __init__(self, graph_def: tf.compat.v1.GraphDef) -> None:
        self._graph_def = graph_def
        self._functions = {function.signature.name: function for function in graph_def.library.function}
        self._scopes: dict[str, _Scope] = {}
        self._main = _Scope(graph_def.node)
        self._own: set[str] = set()

    def only_read(self, placeholder: str) -> bool:
        """Whether a variable's value is all that the graph, its branches, loops and calls ask for."""
        return self._only_read(self._main, (placeholder, 0), None)

    def read_as_value(self, placeholder: str, dtype: int, shape: Sequence[int]) -> None:
        """Rewrite what reads a variable as if `placeholder` were its value; the caller replaces the node itself.

        Args:
            placeholder: `only_read` holds for it.
            dtype: the value's TensorFlow DataType.
            shape: the value's shape, fully known.
        """
        self._rewrite(self._main, (placeholder, 0), dtype, shape)

    def _scope(self, name: str) -> _Scope:
        if name not in self._scopes:
            function = self._functions[name]
            self._scopes[name] = _Scope(function.node_def, function)
        return self._scopes[name]

    def _only_read(self, scope: _Scope, tensor: tuple[str, int], result: int | None) -> bool:
        """`result` is the position at which a loop's body returns the handle unchanged."""
        if any(index != result for index in scope.returned(tensor)):
            return False
        for node, position in scope.uses(tensor):
            if node.op in _READS and position == 0:
                continue
            if node.op in _PASSES:
                ok = all(self._only_read(scope, (node.name, index), result) for index in range(_PASSES[node.op]))
            else:
                ok = node.op in _CALLERS and self._callees_only_read(node, position)
                if ok and node.op in _WHILE:
                    ok = self._only_read(scope, (node.name, position), result)
            if not ok:
                return False
        return True

    def _callees_only_read(self, node: tf.compat.v1.NodeDef, position: int) -> bool:
        index = position - _CALLERS[node.op][2]
        if index < 0:
            return False
        for name in _functions(node):
            if name not in self._functions:
                return False
            inner = self._scope(name)
            argument = self._functions[name].signature.input_arg[index].name
            body = node.op in _WHILE and name == node.attr["body"].func.name
            if not self._only_read(inner, (argument, 0), index if body else None):
                return False
            if body and not _passes(inner, argument, index):
                return False
        return True

    def _rewrite(self, scope: _Scope, tensor: tuple[str, int], dtype: int, shape: Sequence[int]) -> None:
        for node, position in scope.uses(tensor):
            if node.op in _READS:
                _rewrite_read(scope, node, dtype)
            elif node.op in _PASSES:
                node.attr["T"].type = dtype
                node.attr.pop("_output_shapes", None)
                for index in range(_PASSES[node.op]):
                    self._rewrite(scope, (node.name, index), dtype, shape)
            else:
                self._rewrite_caller(node, position, dtype, shape)
                if node.op in _WHILE:
                    self._rewrite(scope, (node.name, position), dtype, shape)

    def _rewrite_caller(self, node: tf.compat.v1.NodeDef, position: int, dtype: int, shape: Sequence[int]) -> None:
        attributes, types, first = _CALLERS[node.op]
        index = position - first
        node.attr[types].list.type[index] = dtype
        if node.op in _WHILE:
            node.attr.pop("_output_shapes", None)
            if node.attr["output_shapes"].list.shape:
                _set_shape(node.attr["output_shapes"].list.shape[index], shape)
        for attribute in attributes.split():
            value = node.attr[attribute]
            for called in value.list.func or [value.func]:
                called.name = self._own_copy(called.name)
                function = self._functions[called.name]
                argument = function.signature.input_arg[index]
                argument.type = dtype
                argument.ClearField("handle_data")
                function.arg_attr.pop(index, None)
                if len(function.attr["_input_shapes"].list.shape) > index:
                    _set_shape(function.attr["_input_shapes"].list.shape[index], shape)
                if attribute == "body":
                    function.signature.output_arg[index].type = dtype
                    function.signature.output_arg[index].ClearField("handle_data")
                self._rewrite(self._scope(called.name), (argument.name, 0), dtype, shape)

    def _own_copy(self, name: str) -> str:
        """A copy of a function that only one node calls, and that may be changed therefore."""
        if name in self._own:
            return name
        number = len(self._own)
        while f"{name}_frozen_{number}" in self._functions:
            number += 1
        function = self._graph_def.library.function.add()
        function.CopyFrom(self._functions[name])
        function.signature.name = f"{name}_frozen_{number}"
        self._functions[function.signature.name] = function
        self._own.add(function.signature.name)
        return str(function.signature.name)


def _key(reference: str) -> tuple[str, int]:
    """Node and output index of an input; exact for ops with one (list of) outputs, which is all that handles pass."""
    name, _, rest = reference.partition(":")
    index = rest.rpartition(":")[2]
    return name, int(index) if index else 0


def _functions(node: tf.compat.v1.NodeDef) -> list[str]:
    attributes = _CALLERS[node.op][0].split()
    return [
        function.name
        for attribute in attributes
        for function in (node.attr[attribute].list.func or [node.attr[attribute].func])
    ]


def _passes(body: _Scope, argument: str, index: int) -> bool:
    """Whether a loop's body returns its argument as its result `index`, be it through Identity ops."""
    assert body.function is not None
    source = _key(body.function.ret[body.function.signature.output_arg[index].name])[0]
    by_name = {node.name: node for node in body.nodes}
    while source != argument:
        node = by_name.get(source)
        if node is None or node.op != "Identity":
            return False
        source = _key(node.input[0])[0]
    return True


def _rewrite_read(scope: _Scope, node: tf.compat.v1.NodeDef, dtype: int) -> None:
    """Make a read an ordinary op on the value. Its control inputs go: nothing changes a constant."""
    old = type(node)()
    old.CopyFrom(node)
    data = [reference for reference in old.input if not reference.startswith("^")]
    del node.input[:]
    node.attr.clear()
    if "_output_shapes" in old.attr:
        node.attr["_output_shapes"].CopyFrom(old.attr["_output_shapes"])
    if old.op == "ReadVariableOp":
        node.op = "Identity"
        node.attr["T"].type = dtype
        _rename_result(scope, node.name, "value", "output")
    elif old.op == "VariableShape":
        node.op = "Shape"
        node.attr["T"].type = dtype
        node.attr["out_type"].type = old.attr["out_type"].type
    else:
        node.op = "GatherNd"
        node.attr["Tparams"].type = dtype
        node.attr["Tindices"].type = old.attr["Tindices"].type
    if old.op == "ResourceGather":
        node.op = "GatherV2"
        batch_dims = old.attr["batch_dims"].i
        data.append(_add_axis(scope, f"{node.name}/axis", batch_dims))
        node.attr["batch_dims"].i = batch_dims
        node.attr["Taxis"].type = _int32()
    node.input.extend(data)


def _add_axis(scope: _Scope, name: str, axis: int) -> str:
    from tensorflow.python.framework import tensor_util

    used = {node.name for node in scope.nodes}
    while name in used:
        name += "_"
    node = scope.nodes.add()  # type: ignore[attr-defined]
    node.name, node.op = name, "Const"
    node.attr["dtype"].type = _int32()
    node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(axis, _int32(), ()))
    return name if scope.function is None else f"{name}:output:0"


def _rename_result(scope: _Scope, name: str, old: str, new: str) -> None:
    """Inside functions a tensor's name holds the name of the op's output argument."""
    if scope.function is None:
        return
    before, after = f"{name}:{old}:", f"{name}:{new}:"
    for node in scope.nodes:
        for position, reference in enumerate(node.input):
            if reference.startswith(before):
                node.input[position] = after + reference.removeprefix(before)
    for result, reference in list(scope.function.ret.items()):
        if reference.startswith(before):
            scope.function.ret[result] = after + reference.removeprefix(before)


def _set_shape(proto: tf.compat.v1.TensorShapeProto, shape: Sequence[int]) -> None:
    proto.unknown_rank = False
    del proto.dim[:]
    for size in shape:
        proto.dim.add().size = size


def _int32() -> int:
    import tensorflow as tf

    return int(tf.int32.as_datatype_enum)
