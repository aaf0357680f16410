"""The functions of a GraphDef: which a node runs, which a graph reaches, and names that can't clash."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.attr_value_pb2 import NameAttrList
    from tensorflow.core.framework.function_pb2 import FunctionDef


def called_functions(node: tf.compat.v1.NodeDef) -> list[str]:
    """Names of the functions that a node may run: its `func` attributes, and the op itself, which may be one."""
    return [node.op, *attribute_functions(node)]


def attribute_functions(node: tf.compat.v1.NodeDef) -> list[str]:
    """Names of the functions in a node's attributes: the branches of an If or Case, a loop's condition and body."""
    return [called.name for called in _references(node)]


def reachable_functions(nodes: Iterable[tf.compat.v1.NodeDef], library: dict[str, FunctionDef]) -> list[FunctionDef]:
    """The functions that the nodes may run, directly or through one another, by name."""
    pending = [name for node in nodes for name in called_functions(node)]
    found: set[str] = set()
    while pending:
        name = pending.pop()
        if name in library and name not in found:
            found.add(name)
            pending.extend(inner for node in library[name].node_def for inner in called_functions(node))
    return [library[name] for name in sorted(found)]


def name_by_content(graph_def: tf.compat.v1.GraphDef) -> None:
    """Rename every function in the library after what it does.

    TensorFlow numbers functions per process, and one process holds only one function of a name: without this, a
    graph that was written by one process could not be imported by another that traced functions of its own.
    """
    library = {function.signature.name: function for function in graph_def.library.function}
    names: dict[str, str] = {}
    for name in sorted(library):
        _name(name, library, names)
    for node in graph_def.node:
        _rename_calls(node, names)


def _name(name: str, library: dict[str, FunctionDef], names: dict[str, str]) -> str:
    if name not in names:
        function = library[name]
        for node in function.node_def:
            for called in called_functions(node):
                if called in library and called != name:
                    _name(called, library, names)
            _rename_calls(node, names)
        base = re.sub(r"^__(inference|forward)_|((_frozen)?_\d+)+$", "", name)
        function.signature.name = ""
        digest = hashlib.sha256(function.SerializeToString(deterministic=True)).hexdigest()
        names[name] = function.signature.name = f"{base}_{digest[:16]}"
    return names[name]


def _rename_calls(node: tf.compat.v1.NodeDef, names: dict[str, str]) -> None:
    node.op = names.get(node.op, node.op)
    for called in _references(node):
        called.name = names.get(called.name, called.name)


def _references(node: tf.compat.v1.NodeDef) -> Iterator[NameAttrList]:
    for value in node.attr.values():
        if value.HasField("func"):
            yield value.func
        yield from value.list.func
