"""Drop what a graph does not need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stages.library import reachable_functions

if TYPE_CHECKING:
    import tensorflow as tf


def prune(graph_def: tf.compat.v1.GraphDef, roots: Iterable[str]) -> tf.compat.v1.GraphDef:
    """The nodes that `roots` (tensors or nodes) depend on, in their order, and the functions that these may run."""
    import tensorflow as tf

    by_name = {node.name: node for node in graph_def.node}
    pending = [root.partition(":")[0] for root in roots]
    needed: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending.extend(reference.lstrip("^").partition(":")[0] for reference in by_name[name].input)
    nodes = [node for node in graph_def.node if node.name in needed]
    pruned = tf.compat.v1.GraphDef(versions=graph_def.versions, node=nodes)
    pruned.library.CopyFrom(graph_def.library)
    prune_library(pruned)
    return pruned


def prune_library(graph_def: tf.compat.v1.GraphDef) -> None:
    """Drop the functions that no node may run, in place."""
    library = {function.signature.name: function for function in graph_def.library.function}
    kept = reachable_functions(graph_def.node, library)
    graph_def.library.CopyFrom(type(graph_def.library)(function=kept, gradient=()))
