"""A batch normalisation that was left as Mul and Add becomes part of the convolution before it.

In float32 it makes no difference. In 16 bits the convolution's result would be rounded before the normalisation takes its
mean away, and what is left may be mostly rounding: MobileNet's largest error in fp16 was 3 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.onnx_files import key_of, stand_in
from stages.precision.types import names_read

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array

Floats = npt.NDArray[np.float32]


def fold_normalisation(model: onnx.ModelProto, weights: MutableMapping[str, Array]) -> None:
    """Multiply a Mul by a constant for each channel, and add an Add of one, into the float32 Conv that alone feeds it.

    Args:
        model: changed in place.
        weights: the values of stand-ins by key; gains those of the new weights.
    """
    folder = _Folder(model.graph, weights)
    for node in model.graph.node:
        if node.op_type == "Conv" and node.domain in ("", "ai.onnx"):
            while folder.fold_next(node):
                pass
    folder.remove_folded()


class _Folder:
    def __init__(self, graph: onnx.GraphProto, weights: MutableMapping[str, Array]) -> None:
        self._graph = graph
        self._weights = weights
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._reads = Counter(name for node in graph.node for name in names_read([node]))
        self._reads.update(output.name for output in graph.output)
        self._reader = {name: node for node in graph.node for name in node.input}
        self._folded: set[str] = set()
        """What the nodes that are gone computed."""

    def fold_next(self, conv: onnx.NodeProto) -> bool:
        """Fold the node that reads a convolution's result, if that can be done."""
        result = conv.output[0]
        reader = self._reader.get(result)
        if reader is None or self._reads[result] != 1 or reader.op_type not in ("Mul", "Add"):
            return False
        other = next(name for name in reader.input if name != result)
        stated = [name for name in (*conv.input[1:], other) if name]
        if not all(map(self._is_float, stated)):
            return False
        kernel = self._value(conv.input[1])
        by_channel = _by_channel(self._value(other), kernel.shape[0], kernel.ndim)
        if by_channel is None:
            return False
        name = reader.output[0]
        bias = self._value(conv.input[2]) if len(stated) == 3 else None
        if reader.op_type == "Mul":
            scaled = kernel * by_channel.reshape(-1, *[1] * (kernel.ndim - 1))
            conv.input[1] = self._constant(f"{name}__kernel", scaled, large=self._is_large(conv.input[1]))
            bias = None if bias is None else bias * by_channel
        else:
            bias = by_channel if bias is None else bias + by_channel
        del conv.input[2:]
        if bias is not None:
            conv.input.append(self._constant(f"{name}__bias", bias))
        conv.output[0] = name
        self._folded.add(name)
        return True

    def remove_folded(self) -> None:
        """Remove the nodes that are part of a convolution now, and constants that nothing reads any more."""
        if not self._folded:
            return
        kept = [node for node in self._graph.node if node.op_type == "Conv" or node.output[0] not in self._folded]
        del self._graph.node[:]
        self._graph.node.extend(kept)
        del self._graph.value_info[:]
        read = names_read(kept) | {output.name for output in self._graph.output}
        constants = [tensor for tensor in self._constants.values() if tensor.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(constants)

    def _is_float(self, name: str) -> bool:
        import onnx

        return name in self._constants and self._constants[name].data_type == onnx.TensorProto.FLOAT

    def _is_large(self, name: str) -> bool:
        return key_of(self._constants[name]) is not None

    def _value(self, name: str) -> Floats:
        import onnx

        key = key_of(self._constants[name])
        values = onnx.numpy_helper.to_array(self._constants[name]) if key is None else self._weights[key]
        return values.astype(np.float32, copy=False)

    def _constant(self, name: str, values: Floats, *, large: bool = False) -> str:
        import onnx

        if large:
            self._weights[name] = values
            self._constants[name] = stand_in(name, onnx.TensorProto.FLOAT, values.shape, name)
        else:
            self._constants[name] = onnx.numpy_helper.from_array(values, name)
        return name


def _by_channel(values: Floats, channels: int, rank: int) -> Floats | None:
    """A constant as one number for each channel of a tensor (N, C, …) of that rank; None if it is something else."""
    shape = values.shape[1:] if values.ndim == rank and values.shape[0] == 1 else values.shape
    return values.reshape(-1) if shape == (channels, *[1] * (rank - 2)) else None
