"""Large weights of an ONNX model whose values never come near tf2onnx.

tf2onnx sees them as inputs of the model. Afterwards these become stand-ins (see `onnx_files`), and what only moves a
weight's elements, such as the Transpose before a convolution's kernel, is done to the array: numpy's views cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from stages.onnx_files import key_of, stand_in

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array


def attach(model: onnx.ModelProto, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Turn the inputs that stand for weights into initialisers, in place; returns the arrays of all stand-ins, by key.

    Args:
        model: from tf2onnx, nodes in topological order; an input `<key>:0` for each weight that it reads.
    """
    graph = model.graph
    kept = []
    for value in graph.input:
        key = value.name.removesuffix(":0")
        if key in weights:
            kind = value.type.tensor_type.elem_type
            graph.initializer.append(stand_in(value.name, kind, weights[key].shape, key))
        else:
            kept.append(value)
    inputs = type(model)().graph.input
    inputs.extend(kept)
    del graph.input[:]
    graph.input.extend(inputs)
    return _moved(graph, weights)


def _moved(graph: onnx.GraphProto, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Do what only moves a weight's elements to the array."""
    arrays = dict(weights)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ends = {value.name for value in graph.output}
    for node in list(graph.node):
        source = constants.get(node.input[0]) if node.input else None
        key = key_of(source) if source is not None else None
        if source is None or key is None or node.op_type not in _MOVES or node.output[0] in ends:
            continue
        others = [constants.get(name) for name in node.input[1:]]
        if any(tensor is None or key_of(tensor) is not None for tensor in others):
            continue
        result = _MOVES[node.op_type](arrays[key], node, [_integers(tensor) for tensor in others if tensor is not None])
        name = node.output[0]
        arrays[name] = result
        graph.initializer.append(stand_in(name, source.data_type, result.shape, name))
        constants[name] = graph.initializer[-1]
        graph.node.remove(node)
    return arrays


def _integers(tensor: onnx.TensorProto) -> list[int]:
    import onnx

    return [int(value) for value in onnx.numpy_helper.to_array(tensor).reshape(-1)]


def _transpose(array: Array, node: onnx.NodeProto, others: list[list[int]]) -> Array:
    order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), None)
    return array.transpose(order)


def _reshape(array: Array, node: onnx.NodeProto, others: list[list[int]]) -> Array:
    # ONNX's 0 keeps the size at that place.
    return array.reshape([size or array.shape[axis] for axis, size in enumerate(others[0])])


def _same(array: Array, node: onnx.NodeProto, others: list[list[int]]) -> Array:
    return array


_MOVES: dict[str, Callable[[Array, onnx.NodeProto, list[list[int]]], Array]] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Identity": _same,
}
