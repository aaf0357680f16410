"""Stitched bodies back in the nodes that run them.

An engine's plan is named by a tensor of the main graph (an asset's path, or the plan itself). It reaches the body of a
branch or loop as one more argument, which a loop hands on from iteration to iteration.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.bodies import LOOPS, Body
from stages.importing import import_graph

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.function_pb2 import FunctionDef

_FUNCTION_ATTRIBUTES = ("cond", "body", "then_branch", "else_branch", "branches")


@dataclass(frozen=True, slots=True)
class NewBody:
    """A stitched body: its graph, where its results are in it, and the Placeholder for each plan's path, by file name."""

    body: Body
    graph_def: tf.compat.v1.GraphDef
    outputs: tuple[str, ...]
    plan_nodes: Mapping[str, str]


def put_back(
    node: tf.compat.v1.NodeDef, new: Sequence[NewBody], plans: Mapping[str, str], library: Mapping[str, FunctionDef]
) -> list[FunctionDef]:
    """Let a node run stitched bodies instead of its own.

    Args:
        node: the branch or loop, changed in place; its data inputs are set, its control inputs are not yet.
        new: those of its bodies that have engines, at any depth.
        plans: for each plan that they need, by file name, how the node refers to its path.
        library: the functions that the node runs now.

    Returns:
        The functions that it runs then and the old library has not.
    """
    import tensorflow as tf

    files = sorted(plans)
    loop = node.op in LOOPS
    stitched = {(entry.body.callee.attribute, entry.body.callee.position): entry for entry in new}
    added: list[FunctionDef] = []
    for attribute in _FUNCTION_ATTRIBUTES:
        if attribute not in node.attr:
            continue
        value = node.attr[attribute]
        for position, called in enumerate(value.list.func or [value.func]):
            if entry := stitched.get((attribute, position)):
                functions = _traced(entry, files, loop)
            else:
                functions = [_padded(library[called.name], len(files))]
            called.name = functions[0].signature.name
            added += functions
    node.input.extend(plans[file] for file in files)
    node.attr["T" if loop else "Tin"].list.type.extend([tf.string.as_datatype_enum] * len(files))
    if loop:
        for attribute in ("output_shapes", "_output_shapes"):
            if node.attr[attribute].list.shape:
                node.attr[attribute].list.shape.extend([tf.TensorShape([]).as_proto()] * len(files))
            else:
                del node.attr[attribute]
    return added


def _traced(new: NewBody, files: Sequence[str], loop: bool) -> list[FunctionDef]:
    """A stitched body as a function that takes all plans' paths besides its arguments, and what it calls."""
    import tensorflow as tf

    inputs = new.body.graph.frozen.inputs

    def run(*arguments: tf.Tensor) -> list[tf.Tensor]:
        given, paths = arguments[: len(inputs)], arguments[len(inputs) :]
        tensors = {tensor.name: value for tensor, value in zip(inputs, given, strict=True)}
        by_file = dict(zip(files, paths, strict=True))
        tensors |= {f"{node}:0": by_file[file] for file, node in new.plan_nodes.items()}
        results = import_graph(new.graph_def, tensors, new.outputs)
        return [*results, *paths] if loop else results

    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in inputs]
    specs += [tf.TensorSpec([], tf.string)] * len(files)
    concrete = tf.function(run, autograph=False).get_concrete_function(*specs)
    return [_named(concrete.function_def), *concrete.graph.as_graph_def().library.function]


def _padded(function: FunctionDef, count: int) -> FunctionDef:
    """A condition, or a branch without engines, that takes the plans' paths and ignores them."""
    import tensorflow as tf

    copy = type(function)()
    copy.CopyFrom(function)
    copy.attr.pop("_input_shapes", None)
    taken = {argument.name for argument in copy.signature.input_arg} | {node.name for node in copy.node_def}
    for number in range(count):
        name = f"graftrt_plan_{number}"
        while name in taken:
            name += "_"
        copy.signature.input_arg.add(name=name, type=tf.string.as_datatype_enum)
    return _named(copy)


def _named(function: FunctionDef) -> FunctionDef:
    """The function under a name made of what it does: functions are known by name alone, process-wide."""
    copy = type(function)()
    copy.CopyFrom(function)
    copy.signature.name = ""
    digest = hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()[:16]
    copy.signature.name = f"graftrt_body_{digest}"
    return copy
