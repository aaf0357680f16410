"""Bring a GraphDef into a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf


def import_graph(
    graph_def: tf.compat.v1.GraphDef, tensors: Mapping[str, tf.Tensor], outputs: Sequence[str]
) -> list[tf.Tensor]:
    """Import a graph under its own names and return its `outputs`.

    Args:
        tensors: what the graph's tensors are to be replaced by, by tensor name; eager tensors (weights, resource
            handles, asset paths) are captured. Names that the graph does not have are ignored.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    here = tf.compat.v1.get_default_graph()
    present = {node.name for node in graph_def.node}
    input_map = {name: here.capture(t) for name, t in tensors.items() if name.rsplit(":", 1)[0] in present}
    # What waits for a replaced node must wait for its replacement, or the node itself would have to run.
    waited_for = {reference for node in graph_def.node for reference in node.input if reference.startswith("^")}
    controls = {f"^{name.rsplit(':', 1)[0]}": tensor for name, tensor in input_map.items()}
    input_map |= {name: tensor for name, tensor in controls.items() if name in waited_for}
    # The importer makes functions known to the graph, but not to the runtime that will call the traced function.
    for function in graph_def.library.function:
        if not context.context().has_function(function.signature.name):
            context.context().add_function_def(function)
    results: list[tf.Tensor] = tf.graph_util.import_graph_def(
        graph_def, input_map=input_map, return_elements=list(outputs), name=""
    )
    return results


def trace(
    body: Callable[..., object], specs: Mapping[str, tf.TensorSpec], graph_def: tf.compat.v1.GraphDef
) -> tf.types.experimental.ConcreteFunction:
    """Trace a function that imports a graph; all that has effects in it will run.

    Args:
        body: takes the arguments by name; it runs once.
        specs: the arguments.
        graph_def: what `body` imports.
    """
    import tensorflow as tf

    if not any(node.op == "Switch" for node in graph_def.node):
        return tf.function(body, autograph=False).get_concrete_function(**specs)
    names = sorted(specs)

    def run(*tensors: tf.Tensor) -> object:
        return body(**dict(zip(names, tensors, strict=True)))

    return trace_as_it_is(run, [specs[name] for name in names], names)


def trace_as_it_is(
    body: Callable[..., object], specs: Sequence[tf.TensorSpec], names: Sequence[str]
) -> tf.types.experimental.ConcreteFunction:
    """Trace a function whose graph says itself what waits for what.

    Else TensorFlow adds an order to all that has effects, and fails on branches of TensorFlow 1 (Switch and Merge) that
    it did not build itself. A function without such an order runs all of its stateful ops; to list those that must run
    would not do, because some may be dead, and what waits for the function would be too.

    Args:
        body: takes one tensor for each of `specs`; it runs once.
        names: the names of the arguments, for callers with keywords.
    """
    import tensorflow as tf

    function = tf.compat.v1.wrap_function(body, signature=list(specs))
    # As TensorFlow's own loader of TensorFlow 1 models does.
    function._arg_keywords = list(names)
    function._num_positional_args = 1 if len(names) == 1 else 0
    return function
