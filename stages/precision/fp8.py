"""E4M3 on a CPU: the same rounding as a Q/DQ pair's, in other words.

ONNX Runtime 1.32 optimises E4M3 pairs wrongly: before QuantizeLinear it drops a Relu, as if zero were the smallest number
of the type (measured: results off by their own size; right with all optimisation off). So that what a GPU will compute can
be verified on a CPU, each pair becomes a division, a clip, casts to E4M3 and back, and a multiplication.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.onnx_files import without_weights
from stages.precision.types import names_read

if TYPE_CHECKING:
    import onnx


def with_casts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model that `quantize.in_8_bits` wrote in fp8, its remainder in float32."""
    import onnx

    result = without_weights(model)
    result.graph.initializer.extend(model.graph.initializer)
    scales = {tensor.name: tensor for tensor in model.graph.initializer}
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    largest = onnx.numpy_helper.from_array(np.array(448, np.float32), "e4m3__largest")
    smallest = onnx.numpy_helper.from_array(np.array(-448, np.float32), "e4m3__smallest")
    result.graph.initializer.extend([largest, smallest])
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], output: str, doc_string: str, to: int | None = None) -> str:
        nodes.append(onnx.helper.make_node(op, inputs, [output], output, doc_string, to=to))
        return output

    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            nodes.append(node)
            continue
        source, scale, words, last = node.input[0], node.input[1], node.doc_string, node.output[0]
        if node.op_type == "QuantizeLinear":
            steps = add("Div", [source, scale], f"{last}__steps", words)
            inside = add("Clip", [steps, smallest.name, largest.name], f"{last}__inside", words)
            add("Cast", [inside], last, words, onnx.TensorProto.FLOAT8E4M3FN)
            continue
        values = onnx.numpy_helper.to_array(scales[scale])
        if values.ndim:
            axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
            shape = [-1 if i == axis else 1 for i in range(ranks[source])]
            scale = f"{scale}__by_channel"
            result.graph.initializer.append(onnx.numpy_helper.from_array(values.reshape(shape), scale))
        wide = add("Cast", [source], f"{last}__steps", words, onnx.TensorProto.FLOAT)
        add("Mul", [wide, scale], last, words)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    read = names_read(nodes)
    kept = [tensor for tensor in result.graph.initializer if tensor.name in read]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result
