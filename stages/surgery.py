"""Cutting ONNX models with graph-surgeon, to find the node that a model fails on without naming it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

INFERENCE_LIMIT_BYTES = 1_500_000_000
"""ONNX's type inference serialises the model, for which protobuf allows 2 GiB."""


def first_failing_node(model: onnx.ModelProto, scratch: Path, fails: Callable[[Path], bool]) -> str:
    """The name of the node with which the smallest failing prefix of a model ends; empty if no prefix can be cut.

    Args:
        model: nodes in topological order, uniquely named; it fails as a whole.
        scratch: a folder to write prefixes in.
        fails: whether the ONNX file at a path fails.
    """
    import onnx

    # Intermediate tensors become outputs, which must state their types.
    typed = onnx.shape_inference.infer_shapes(model) if model.ByteSize() < INFERENCE_LIMIT_BYTES else model
    low, high = 0, len(model.graph.node)
    while high - low > 1:
        middle = (low + high) // 2
        path = scratch / f"prefix_{middle}.onnx"
        if not _write_prefix(typed, middle, path):
            return ""
        if fails(path):
            high = middle
        else:
            low = middle
        path.unlink()
    return str(model.graph.node[high - 1].name)


def _write_prefix(model: onnx.ModelProto, count: int, path: Path) -> bool:
    """Write the first `count` nodes of a model; what they compute and do not read themselves becomes its outputs. False
    where graph-surgeon can't: it fails on empty list attributes, and tensors may have no type."""
    import onnx
    import onnx_graphsurgeon as gs

    try:
        graph = gs.import_onnx(model)
        del graph.nodes[count:]
        read = {id(tensor) for node in graph.nodes for tensor in node.inputs}
        graph.outputs = [tensor for node in graph.nodes for tensor in node.outputs if id(tensor) not in read]
        graph.cleanup(remove_unused_graph_inputs=True)
        if any(tensor.dtype is None for tensor in graph.outputs):
            return False
        onnx.save(gs.export_onnx(graph), path)
    except (AttributeError, IndexError, TypeError, ValueError):
        return False
    return True
