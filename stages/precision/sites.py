"""Which nodes of a model gain from 8 bits, and which of their inputs have to be quantised for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.onnx_files import key_of
from stages.precision.types import Types, names_read

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array

SUMS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "MaxPool", "Pad"})
"""Over these TensorRT moves a scale."""


@dataclass(frozen=True, slots=True)
class Site:
    """A node to quantise: which of its inputs is data and which is weights, and the weights' axis of output channels."""

    data: int
    weight: int
    axis: int


class Graph:
    """What is asked about the main graph of a model: who makes and who reads its tensors, and which are constants."""

    def __init__(self, model: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
        self.nodes = list(model.graph.node)
        self.types = Types.of(model, "int8")
        self.outputs = {output.name for output in model.graph.output}
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer: dict[str, onnx.NodeProto] = {}
        self._readers: dict[str, int] = {}
        self._place: dict[str, int] = {}
        self._weights = weights
        for number, node in enumerate(self.nodes):
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t
            self.producer.update(dict.fromkeys(node.output, node))
            self._place.update(dict.fromkeys(node.output, number))
            for name in names_read([node]):
                self._readers[name] = self._readers.get(name, 0) + 1

    def value(self, name: str) -> npt.NDArray[np.float32]:
        import onnx

        tensor = self.constants[name]
        key = key_of(tensor)
        values = onnx.numpy_helper.to_array(tensor) if key is None else self._weights[key]
        return values.astype(np.float32, copy=False)

    def site(self, node: onnx.NodeProto) -> Site | None:
        """How a node can be quantised; None if it can't."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in SUMS:
            return None
        data, weight = (1, 0) if node.op_type == "MatMul" and node.input[0] in self.constants else (0, 1)
        inputs = node.input[data], node.input[weight]
        if inputs[0] in self.constants or inputs[1] not in self.constants or not all(map(self.types.is_float, inputs)):
            return None
        rank = len(self.constants[inputs[1]].dims)
        if node.op_type in ("MatMul", "Gemm"):
            transposed = any(a.name == ("transA", "transB")[weight] and a.i for a in node.attribute)
            columns = (weight == 1) != transposed
            return Site(data, weight, int(columns)) if rank == 2 else None
        return Site(data, weight, int(node.op_type == "ConvTranspose"))

    def read_once(self, name: str) -> bool:
        """Whether one node reads a tensor, and nobody else."""
        return self._readers.get(name, 0) == 1 and name not in self.outputs

    def residual(self, node: onnx.NodeProto) -> str:
        """The tensor that a residual Add is to read in 8 bits; empty if the node is none."""
        if node.op_type != "Add" or node.input[0] == node.input[1] or any(n in self.constants for n in node.input):
            return ""
        fused = [name for name in node.input if self._from_site(name)]
        if not fused:
            return ""
        last = max(fused, key=lambda name: self._place[name])
        return next(name for name in node.input if name != last)

    def _from_site(self, name: str) -> bool:
        """Whether a tensor is made by a node to quantise, and a bias perhaps, for one reader only."""
        node = self.producer.get(name)
        if node is None or not self.read_once(name):
            return False
        if node.op_type == "Add" and (data := [n for n in node.input if n not in self.constants]) and len(data) == 1:
            return self._from_site(data[0])
        return self.site(node) is not None

    def dequantised(self, name: str) -> bool:
        """Whether the model itself has quantised a tensor, or one that it is moved from."""
        node = self.producer.get(name)
        while node is not None and node.op_type in _MOVES:
            node = self.producer.get(node.input[0])
        return node is not None and node.op_type == "DequantizeLinear"


def quantisable(model: onnx.ModelProto, weights: Mapping[str, Array]) -> frozenset[str]:
    """The activations that `in_8_bits` wants ranges for.

    Raises:
        BuildError: ONNX's type inference rejects the model.
    """
    graph = Graph(model, weights)
    wanted = {graph.residual(node) for node in graph.nodes} - {""}
    for node in graph.nodes:
        if site := graph.site(node):
            wanted.add(node.input[site.data])
    return frozenset(wanted)


def multiplications(model: onnx.ModelProto, weights: Mapping[str, Array]) -> dict[str, int]:
    """How many multiplications can be done in 8 bits for each activation that `quantisable` names, at sizes of 1 where
    they are open. 0 where an activation is only added.

    Raises:
        BuildError: ONNX's type inference rejects the model.
    """
    graph = Graph(model, weights)
    found = dict.fromkeys(sorted(quantisable(model, weights)), 0)
    for node in graph.nodes:
        if site := graph.site(node):
            dims = graph.constants[node.input[site.weight]].dims
            sizes = [size or 1 for size in graph.types.lengths.get(node.output[0], ())]
            found[node.input[site.data]] += math.prod(sizes) * math.prod(dims) // max(1, dims[site.axis])
    return found


def convolved(model: onnx.ModelProto, weights: Mapping[str, Array]) -> frozenset[str]:
    """The activations that convolutions to be quantised read, whose channels are on axis 1.

    Raises:
        BuildError: ONNX's type inference rejects the model.
    """
    graph = Graph(model, weights)
    found = ((node, graph.site(node)) for node in graph.nodes if node.op_type == "Conv")
    return frozenset(node.input[site.data] for node, site in found if site)
