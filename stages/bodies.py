"""The bodies of branches and loops: the functions that a While, If or Case runs, as graphs of their own.

A body is split like the graph around it. What it is always given the same constant for (weights, which TensorFlow
hands to a loop as arguments that the body passes on unchanged) can be made a constant inside it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.artifacts import FrozenGraph, Shape, Tensor, Weight
from stages.errors import StitchError, VerifyError
from stages.graph import Graph
from stages.importing import import_graph
from stages.inline import has_effect, inline_calls
from stages.library import reachable_functions
from stages.model import first_line
from stages.regions import Cut, End, extract

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.function_pb2 import FunctionDef

log = logging.getLogger(__name__)

LOOPS = frozenset({"While", "StatelessWhile"})
FIRST_ARGUMENT = {
    "While": 0,
    "StatelessWhile": 0,
    "If": 1,
    "StatelessIf": 1,
    "Case": 1,
    "StatelessCase": 1,
}
"""Ops that run functions, and which of their inputs is the functions' first argument."""
_FUNCTIONS = {"While": ("body",), "If": ("then_branch", "else_branch"), "Case": ("branches",)}


@dataclass(frozen=True, slots=True)
class Callee:
    """A function that a node may run: `attribute` names it, with its `position` where that is a list of functions."""

    attribute: str
    position: int
    function: str

    @property
    def label(self) -> str:
        return f"{self.attribute}_{self.position}" if self.attribute == "branches" else self.attribute


@dataclass(frozen=True, slots=True)
class Body:
    """A function that node number `call` of the graph around it runs.

    Attributes:
        graph: its nodes, function calls inlined; its outputs are the function's results, in order.
        arguments: which of the function's arguments each of the graph's inputs is; the others are constants in it.
    """

    graph: Graph
    call: int
    callee: Callee
    arguments: tuple[int, ...]


def callees(graph: Graph, i: int) -> list[Callee]:
    """The functions of a branch or loop that do its work: branches and bodies, not a loop's condition."""
    node = graph.node_defs[graph.nodes[i].name]
    found: list[Callee] = []
    for attribute in _FUNCTIONS.get(node.op.removeprefix("Stateless"), ()):
        value = node.attr[attribute]
        names = [called.name for called in value.list.func] or [value.func.name]
        found += [Callee(attribute, position, name) for position, name in enumerate(names)]
    return [callee for callee in found if callee.function in graph.library]


def condition(graph: Graph, i: int) -> Body:
    """A loop's condition."""
    name = graph.node_defs[graph.nodes[i].name].attr["cond"].func.name
    return body_of(graph, i, Callee("cond", 0, name), constants=False)


def body_of(parent: Graph, i: int, callee: Callee, *, constants: bool) -> Body:
    """One function of node number `i` of `parent` as a graph.

    Args:
        constants: make constants of the arguments that are the same constant in every call; else all are inputs.

    Raises:
        VerifyError: TensorFlow can't import the function as a graph.
    """
    import tensorflow as tf

    try:
        return _body_of(parent, i, callee, constants)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        name = f"{parent.full_name(parent.nodes[i].name)}/{callee.label}"
        raise VerifyError(f"{name}: can't be a graph of its own: {first_line(error)}") from error


def _body_of(parent: Graph, i: int, callee: Callee, constants: bool) -> Body:
    import tensorflow as tf

    node, function = parent.nodes[i], parent.library[callee.function]
    graph_def, outputs, side_effects = _flat(function, parent)
    names = [argument.name for argument in function.signature.input_arg]
    ends = node.inputs[FIRST_ARGUMENT[node.op] :]
    loop = node.op in LOOPS
    shapes = [parent.tensor(i, k).shape if loop else parent.tensor(*end).shape for k, end in enumerate(ends)]
    by_name = {inner.name: inner for inner in graph_def.node}
    weights: list[Weight] = []
    inputs: list[int] = []
    for k, (name, end, shape) in enumerate(zip(names, ends, shapes, strict=True)):
        fixed = constants and (not loop or _source(outputs[k], by_name) == f"{name}:0")
        if fixed and parent.nodes[end[0]].free and parent.tensor(*end).dtype not in ("variant", "resource"):
            weight = _make_constant(by_name[name], parent, end)
            weights += [weight] if weight is not None else []
        else:
            inputs.append(k)
            _set_shape(by_name[name], shape)
    arguments = function.signature.input_arg
    results = zip(outputs, function.signature.output_arg, strict=True)
    frozen = replace(
        parent.frozen,
        inputs=tuple(Tensor(f"{names[k]}:0", tf.as_dtype(arguments[k].type).name, shapes[k]) for k in inputs),
        outputs=tuple(Tensor(name, tf.as_dtype(result.type).name, None) for name, result in results),
        input_names=tuple(names[k] for k in inputs),
        output_names=tuple(result.name for result in function.signature.output_arg),
        weights=tuple(weights),
        captures=(),
        side_effects=side_effects,
    )
    scope = f"{parent.full_name(node.name)}/{callee.label}"
    return Body(_imported(frozen, graph_def, scope, node.name), i, callee, tuple(inputs))


def _flat(function: FunctionDef, parent: Graph) -> tuple[tf.compat.v1.GraphDef, tuple[str, ...], tuple[str, ...]]:
    """A function's nodes without calls, its arguments as Placeholders; its results, and what must run besides."""
    import tensorflow as tf
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

    library = tf.compat.v1.GraphDef(versions=parent.graph_def.versions)
    library.library.function.extend(reachable_functions(function.node_def, parent.library))
    with tf.Graph().as_default():  # functions that are called by name are found through the default graph
        tf.graph_util.import_graph_def(library, name="")
        graph_def, flat = function_def_to_graph_def(function)
        graph_def.library.CopyFrom(library.library)
        results = [flat[function.ret[result.name]] for result in function.signature.output_arg]
        must_run = list(function.control_ret.values())
        if not must_run and not function.signature.control_output:
            must_run = [inner.name for inner in graph_def.node if has_effect(inner, parent.library)]
        inlined = inline_calls(graph_def, (f"{r}:0" if ":" not in r else r for r in results), must_run)
    return inlined.graph_def, inlined.outputs, inlined.side_effects


def _imported(frozen: FrozenGraph, graph_def: tf.compat.v1.GraphDef, scope: str, caller: str) -> Graph:
    """The graph; what old writers noted about shapes, and contradicts TensorFlow's own inference, is dropped."""
    try:
        return Graph(frozen, graph_def, scope=scope, caller=caller)
    except ValueError:
        for node in graph_def.node:
            node.attr.pop("_output_shapes", None)
        return Graph(frozen, graph_def, scope=scope, caller=caller)


def _source(tensor: str, nodes: dict[str, tf.compat.v1.NodeDef]) -> str:
    """What a tensor is a copy of."""
    name, _, index = tensor.partition(":")
    while nodes[name].op == "Identity":
        name, _, index = nodes[name].input[0].partition(":")
    return f"{name}:{index or 0}"


def _make_constant(node: tf.compat.v1.NodeDef, parent: Graph, end: End) -> Weight | None:
    """Turn an argument's Placeholder into the constant that the parent gives; a large weight becomes a Weight instead."""
    import tensorflow as tf

    source, output = end
    while parent.nodes[source].op == "Identity":
        source, output = parent.nodes[source].inputs[0]
    original = parent.nodes[source]
    if original.name in parent.weights:
        weight = replace(parent.weights[original.name], node=node.name)
        _set_shape(node, weight.shape)
        return weight
    node.op = "Const"
    node.attr.pop("shape", None)
    if original.op == "Const":
        node.attr["value"].CopyFrom(parent.node_defs[original.name].attr["value"])
    else:
        subgraph = extract(parent, Cut((source,), (), ((source, output),), ()), weights_inside=True)
        (value,) = tf.function(lambda: import_graph(subgraph.graph_def, {}, subgraph.outputs), autograph=False)()
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return None


def _set_shape(node: tf.compat.v1.NodeDef, shape: Shape | None) -> None:
    import tensorflow as tf

    node.attr["shape"].shape.CopyFrom(tf.TensorShape(shape).as_proto())


def bodies(graph: Graph, taken: Sequence[str], *, constants: bool) -> Iterator[Body]:
    """The bodies of the branches and loops that a graph runs itself; none inside TensorFlow 1 loops and conditionals, where
    no value can be looked at.

    Args:
        taken: nodes that engines run; their functions run with them.
        constants: as for `body_of`.
    """
    inside = set(taken)
    for i in graph.computing():
        if graph.nodes[i].name not in inside and not graph.nodes[i].conditional:
            for callee in callees(graph, i):
                try:
                    yield body_of(graph, i, callee, constants=constants)
                except VerifyError as error:
                    log.info("stays whole: %s", error)


def find(main: Graph, scope: str) -> Graph:
    """The graph of a scope: the main graph, or the body of a branch or loop, as it is.

    Raises:
        StitchError: there is no such body.
    """
    graph = main
    while graph.scope != scope:
        inner = (body.graph for body in bodies(graph, (), constants=False))
        found = next((body for body in inner if f"{scope}/".startswith(f"{body.scope}/")), None)
        if found is None:
            raise StitchError(f"{scope}: the model has no such branch or loop", "split the model again")
        graph = found
    return graph
