"""Which TensorFlow ops an ONNX node came from: a stamp in its `doc_string`.

Names don't say it: tf2onnx names nodes freely (`EyeLike__522`) and gives TF names to other nodes. `doc_string` is what
no rewriter, pass or copy of tf2onnx touches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

TAG = "tf:"
_NONE: frozenset[str] = frozenset()
_GENERATED = re.compile(r"__\d+")


def tagged(node: onnx.NodeProto) -> frozenset[str]:
    """The TF ops that a node is stamped with; empty when it has no stamp."""
    return frozenset(node.doc_string[len(TAG) :].split("|")) if node.doc_string.startswith(TAG) else _NONE


def tag(node: onnx.NodeProto, names: AbstractSet[str]) -> None:
    """Stamp a node with TF ops. TensorFlow allows no `|` in names."""
    node.doc_string = TAG + "|".join(sorted(names))


def origin_by_name(name: str, ops: AbstractSet[str]) -> frozenset[str]:
    """The op in `ops` whose name the name of an ONNX node begins with, the longest one; empty where there is none.

    tf2onnx appends `__12`, `_raw_output___12` or `_Cast__12`, and Grappler prefixes `ConstantFolding/` and names the
    ops of an inlined function `call/op`.
    """
    name = name.removeprefix("ConstantFolding/")
    if name in ops:
        return frozenset((name,))
    generated = _GENERATED.search(name)
    stem = name[: generated.start()] if generated else name
    while stem:
        if stem in ops:
            return frozenset((stem,))
        stem = stem[: max(stem.rfind("/"), stem.rfind("_") if generated else -1, 0)]
    return _NONE


def origins(node: onnx.NodeProto, ops: AbstractSet[str]) -> frozenset[str]:
    """The TF ops among `ops` that an ONNX node came from, by its stamp or else by its name; empty if none is known."""
    return tagged(node) & ops or origin_by_name(node.name, ops)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs that a Loop, If or Scan node holds."""
    return [attribute.g for attribute in node.attribute if attribute.HasField("g")]


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph, those in bodies after the node that holds them."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from all_nodes(body)


def origins_by_node(model: onnx.ModelProto, ops: AbstractSet[str]) -> dict[str, frozenset[str]]:
    """`origins` of every node, by name; nodes in Loop and If bodies included."""
    return {node.name: origins(node, ops) for node in all_nodes(model.graph)}


def complete(graph: onnx.GraphProto, names: AbstractSet[str], outer: frozenset[str] = _NONE) -> None:
    """Reduce every stamp to nodes of the TF graph (`names`), and stamp nodes that have none after their neighbours.

    Stamps can name ops that the TF graph has only inside functions or that Grappler made up. Nodes of a Loop or If
    body that came from inside a function get what the node around them has.

    Args:
        graph: in topological order.
        outer: origins of the node that holds this graph.
    """
    found = [
        _NONE.union(*(origin_by_name(name, names) for name in tagged(node))) or origin_by_name(node.name, names)
        for node in graph.node
    ]
    made_by = {tensor: index for index, node in enumerate(graph.node) for tensor in node.output}
    edges = [[made_by[tensor] for tensor in node.input if tensor in made_by] for node in graph.node]
    for index, sources in enumerate(edges):
        if not found[index]:
            found[index] = _NONE.union(*(found[source] for source in sources))
    for index in reversed(range(len(edges))):
        for source in edges[index]:
            found[source] = found[source] or found[index]
    for node, stamp in zip(graph.node, found, strict=True):
        tag(node, stamp or outer)
        for body in bodies(node):
            complete(body, names, stamp or outer)
