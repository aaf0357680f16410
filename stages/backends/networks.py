"""The types in a network that TensorRT's ONNX parser made: what the builder is bound to, known without a GPU."""

from __future__ import annotations

import re
from types import ModuleType
from typing import TYPE_CHECKING

from stages.engine_types import TypedLayer, type_name

if TYPE_CHECKING:
    import tensorrt

_MULTIPLY = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
_MOVES = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


def multiplying_layers(trt: ModuleType, network: tensorrt.INetworkDefinition) -> tuple[TypedLayer, ...]:
    """The layers that multiply, each with its ONNX node and the type that it multiplies in: that of what is dequantised into
    it, where both operands are, else its input's."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    kinds = [getattr(trt.LayerType, name) for name in _MULTIPLY if hasattr(trt.LayerType, name)]
    return tuple(_typed(trt, layer, makers) for layer in layers if layer.type in kinds)


def _typed(trt: ModuleType, layer: tensorrt.ILayer, makers: dict[str, tensorrt.ILayer]) -> TypedLayer:
    operands = [tensor for tensor in map(layer.get_input, range(min(2, layer.num_inputs))) if tensor is not None]
    types = {_source(trt, tensor, makers) for tensor in operands}
    kind = types.pop() if len(types) == 1 else operands[0].dtype.name
    onnx = _ONNX_NODE.findall(getattr(layer, "metadata", "")) or [layer.name]  # metadata: since 10.0
    return TypedLayer(layer.name, tuple(onnx), (type_name(kind),))


def _source(trt: ModuleType, tensor: tensorrt.ITensor, makers: dict[str, tensorrt.ILayer]) -> str:
    """The type of a tensor, or of what was dequantised into it."""
    maker = makers.get(tensor.name)
    while maker is not None and maker.type.name in _MOVES:
        maker = makers.get(maker.get_input(0).name)
    if maker is not None and maker.type == trt.LayerType.DEQUANTIZE:
        tensor = maker.get_input(0)
    return str(tensor.dtype.name)
