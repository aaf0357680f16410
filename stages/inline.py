"""Replace function calls in a GraphDef by the functions' bodies.

A SavedModel's signature is one call op; nothing can be exported from it before its body lies in the graph itself.
Grappler's inliner does the same, but it serialises the whole graph on the way (2 GB limit), drops the shapes that
were set from Python, and forgets which ops must run although no output depends on them. Branches and loops stay ops.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.library import called_functions

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.function_pb2 import FunctionDef

_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}
_HARMLESS = {
    "Placeholder",
    "ReadVariableOp",
    "ResourceGather",
    "ResourceGatherNd",
    "VariableShape",
    "VarHandleOp",
    "VarIsInitializedOp",
    "HashTableV2",
    "MutableHashTableV2",
    "LookupTableFindV2",
    "LookupTableSizeV2",
    "LookupTableExportV2",
    "RandomUniform",
    "RandomUniformInt",
    "RandomStandardNormal",
    "TruncatedNormal",
    "Multinomial",
    "RandomShuffle",
}
"""Stateful ops that change nothing outside the graph: they need to run only where their result is used."""


@dataclass(frozen=True, slots=True)
class Inlined:
    """A GraphDef without function calls.

    Attributes:
        graph_def: nodes of called functions are named `<call>/<node>`; the library still holds all functions.
        outputs: where the tensors asked for are now, in order.
        side_effects: names of nodes that run although no output may depend on them.
    """

    graph_def: tf.compat.v1.GraphDef
    outputs: tuple[str, ...]
    side_effects: tuple[str, ...]


@dataclass(slots=True)
class _State:
    library: dict[str, FunctionDef]
    nodes: list[tf.compat.v1.NodeDef] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    tensors: dict[str, str] = field(default_factory=dict)
    """A call's output, or a body's argument, to the tensor that it is."""
    controls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """A call, or a body's argument, to the nodes to wait for instead."""
    shapes: dict[str, tf.TensorShape] = field(default_factory=dict)
    """What the caller knows about the shape of a tensor of the body."""
    bodies: dict[str, tuple[tf.compat.v1.GraphDef, dict[str, str]]] = field(default_factory=dict)


def inline_calls(graph_def: tf.compat.v1.GraphDef, outputs: Iterable[str], side_effects: Iterable[str]) -> Inlined:
    """Inline every function call of the graph, and the calls in the bodies so gained.

    Args:
        graph_def: names unique; functions in its library.
        outputs: tensors as `op:0` whose place is wanted.
        side_effects: nodes that must run, calls among them; of a call's body, what it lists as its control outputs.
    """
    import tensorflow as tf

    state = _State({function.signature.name: function for function in graph_def.library.function})
    state.used.update(node.name for node in graph_def.node)
    for node in graph_def.node:
        _place(node, state)
    result = tf.compat.v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    for node in state.nodes:
        inputs = [reference for reference in node.input if not reference.startswith("^")]
        controls = [reference[1:] for reference in node.input if reference.startswith("^")]
        waits = dict.fromkeys(name for control in controls for name in _waits(control, state))
        del node.input[:]
        node.input.extend(_short(_resolve(reference, state)) for reference in inputs)
        node.input.extend(f"^{name}" for name in waits)
    result.node.extend(state.nodes)
    _tell_shapes(result, state)
    must_run = dict.fromkeys(name for effect in side_effects for name in _waits(effect, state))
    by_name = {node.name: node for node in result.node}
    effective = (name for name in must_run if name in by_name and has_effect(by_name[name], state.library))
    return Inlined(result, tuple(_resolve(output, state) for output in outputs), tuple(effective))


def has_effect(node: tf.compat.v1.NodeDef, library: dict[str, FunctionDef]) -> bool:
    """Whether running the node changes something outside the graph (a variable, a table, the log)."""
    called = [name for name in called_functions(node) if name in library]
    if called:
        return any(has_effect(inner, library) for name in called for inner in library[name].node_def)
    return node.op not in _HARMLESS and is_stateful(node.op)


def is_stateful(op: str) -> bool:
    """Whether TensorFlow registered the op as stateful; False for ops that it doesn't know."""
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(op)
    return definition is not None and definition.is_stateful


def _place(node: tf.compat.v1.NodeDef, state: _State) -> None:
    """Append a node, or the body of the function that it calls. Its inputs are already those of the whole graph."""
    name = node.attr["f"].func.name if node.op in _CALLS else node.op
    if name not in state.library:
        node.attr.pop("_class", None)  # places it beside a node that is about to be renamed or removed
        state.nodes.append(node)
        return
    function = state.library[name]
    if name not in state.bodies:
        state.bodies[name] = _body(function)
    body, flat = state.bodies[name]
    arguments = [argument.name for argument in function.signature.input_arg]
    data = [reference for reference in node.input if not reference.startswith("^")]
    controls = [reference for reference in node.input if reference.startswith("^")]
    prefix = _free_prefix(node.name, body, state)
    for argument, reference in zip(arguments, data, strict=True):
        state.tensors[f"{prefix}{argument}:0"] = _long(reference)
        state.controls[f"{prefix}{argument}"] = (_long(reference).partition(":")[0],)
    shapes = node.attr["_output_shapes"].list.shape
    for index, output in enumerate(function.signature.output_arg):
        place = _long(prefix + flat[function.ret[output.name]])
        state.tensors[f"{node.name}:{index}"] = place
        if index < len(shapes):
            state.shapes[place] = _shape(shapes[index])
    returns = list(function.control_ret.values())
    if not returns and any(inner.op == "Switch" for inner in body.node):
        # What lies in a branch of TensorFlow 1 may be dead, and what waits for it would be too: wait for the results.
        returns = [flat[result].partition(":")[0] for result in function.ret.values()]
    elif not returns and not function.signature.control_output:
        # Functions from before control outputs run all of their stateful ops.
        returns = [inner.name for inner in body.node if has_effect(inner, state.library)]
    state.controls[node.name] = tuple(prefix + inner for inner in returns)
    for inner in body.node:
        if inner.name in arguments:
            continue
        copy = type(inner)()
        copy.CopyFrom(inner)
        copy.name = prefix + inner.name
        if not copy.device:
            copy.device = node.device
        del copy.input[:]
        copy.input.extend(
            f"^{prefix}{reference[1:]}" if reference.startswith("^") else prefix + reference
            for reference in inner.input
        )
        if is_stateful(inner.op) or inner.op in state.library:
            copy.input.extend(controls)
        _place(copy, state)


def _body(function: FunctionDef) -> tuple[tf.compat.v1.GraphDef, dict[str, str]]:
    """A function's body as a GraphDef, its arguments as Placeholders, and the flat name of each of its tensors."""
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

    body, flat = function_def_to_graph_def(function)
    return body, flat


def _free_prefix(call: str, body: tf.compat.v1.GraphDef, state: _State) -> str:
    prefix = f"{call}/"
    while any(prefix + node.name in state.used for node in body.node):
        prefix = prefix[:-1] + "_/"
    state.used.update(prefix + node.name for node in body.node)
    return prefix


def _resolve(reference: str, state: _State) -> str:
    tensor = _long(reference)
    while tensor in state.tensors:
        tensor = state.tensors[tensor]
    return tensor


def _waits(name: str, state: _State) -> list[str]:
    if name not in state.controls:
        return [name]
    return [inner for replacement in state.controls[name] for inner in _waits(replacement, state)]


def _tell_shapes(graph_def: tf.compat.v1.GraphDef, state: _State) -> None:
    """Add to `_output_shapes` what callers know about the results of a body."""
    known: dict[str, dict[int, tf.TensorShape]] = {}
    for tensor, shape in state.shapes.items():
        name, _, index = _resolve(tensor, state).partition(":")
        known.setdefault(name, {})[int(index)] = shape
    for node in graph_def.node:
        if "_output_shapes" not in node.attr:
            continue
        shapes = node.attr["_output_shapes"].list.shape
        for position, shape in known.get(node.name, {}).items():
            if position < len(shapes) and _shape(shapes[position]).is_compatible_with(shape):
                shapes[position].CopyFrom(_shape(shapes[position]).merge_with(shape).as_proto())


def _shape(proto: object) -> tf.TensorShape:
    import tensorflow as tf

    return tf.TensorShape(proto)


def _long(reference: str) -> str:
    return reference if ":" in reference or reference.startswith("^") else f"{reference}:0"


def _short(tensor: str) -> str:
    return tensor.removesuffix(":0")
