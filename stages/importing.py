"""Bring a GraphDef into the function that is being traced."""

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


def has_loop_frames(graph_def: tf.compat.v1.GraphDef) -> bool:
    """Whether a graph has loops as TensorFlow 1 writes them."""
    return any(node.op in ("Enter", "RefEnter") for node in graph_def.node)


def trace(
    body: Callable[..., list[tf.Tensor]], specs: Sequence[tf.TensorSpec], graph_def: tf.compat.v1.GraphDef
) -> Callable[..., list[tf.Tensor]]:
    """A function, of positional arguments like `specs`, whose body imports `graph_def`.

    Where tf.function is traced, TensorFlow adds control edges between ops that share a resource. For the frames of a
    TensorFlow 1 loop it would draw them from outside into the loop, which can't run; so such a graph is traced as
    TensorFlow 1 would run it, in no other order than its own edges.
    """
    import tensorflow as tf

    if has_loop_frames(graph_def):
        wrapped: Callable[..., list[tf.Tensor]] = tf.compat.v1.wrap_function(body, list(specs))
        return wrapped
    concrete: Callable[..., list[tf.Tensor]] = tf.function(body, autograph=False).get_concrete_function(*specs)
    return concrete
