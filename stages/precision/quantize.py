"""int8 and fp8 (E4M3): Q/DQ pairs where TensorRT fuses them into the kernels that gain.

Symmetric, as TensorRT wants it: zero points are 0, weights have a scale for each output channel and are stored
quantised, activations one scale for the tensor. Where the pairs stand (TensorRT's documentation, "Working with quantized
types", and NVIDIA's modelopt do it likewise):

- on both inputs of Conv, ConvTranspose, Gemm and MatMul whose weights are constants; biases stay as they are;
- at a residual Add, on the branch that is not the convolution it is fused into, so that it is read in 8 bits;
- on what pools read, where that is quantised for another op anyway, so that it need not exist twice;
- on a Concat's result, not on its inputs: TensorRT moves the scale to all of them, as it does over MaxPool and
  whatever else only moves data.

Products of two activations (attention) are left in the remainder's precision: their scores need more than 8 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.errors import BuildError
from stages.onnx_files import key_of, stand_in, without_weights
from stages.precision.opset import raise_opset
from stages.precision.table import Range
from stages.precision.types import Types
from stages.translate.provenance import tagged

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array

QUANTISED = {"int8": ("INT8", 127.0), "fp8": ("FLOAT8E4M3FN", 448.0)}
"""By precision: the element type, and the largest magnitude that it holds."""
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_SUMS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SMALLEST_SCALE = 2.0**-24
"""float16's smallest number: scales are float16 where the remainder is."""
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class _Site:
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
        self.readers: dict[str, int] = {}
        self._weights = weights
        for node in self.nodes:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t
            self.producer.update(dict.fromkeys(node.output, node))
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) + 1

    def value(self, name: str) -> npt.NDArray[np.float32]:
        import onnx

        tensor = self.constants[name]
        key = key_of(tensor)
        values = onnx.numpy_helper.to_array(tensor) if key is None else self._weights[key]
        return values.astype(np.float32, copy=False)

    def site(self, node: onnx.NodeProto) -> _Site | None:
        """How a node can be quantised; None if it can't."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in _SUMS:
            return None
        data, weight = (1, 0) if node.op_type == "MatMul" and node.input[0] in self.constants else (0, 1)
        inputs = node.input[data], node.input[weight]
        if inputs[0] in self.constants or inputs[1] not in self.constants or not all(map(self.types.is_float, inputs)):
            return None
        rank = len(self.constants[inputs[1]].dims)
        if node.op_type in ("MatMul", "Gemm"):
            transposed = any(a.name == ("transA", "transB")[weight] and a.i for a in node.attribute)
            columns = (weight == 1) != transposed
            return _Site(data, weight, int(columns)) if rank == 2 else None
        return _Site(data, weight, int(node.op_type == "ConvTranspose"))

    def residual(self, node: onnx.NodeProto) -> str:
        """The tensor that a residual Add is to read in 8 bits; empty if the node is none."""
        if node.op_type != "Add" or node.input[0] == node.input[1] or any(n in self.constants for n in node.input):
            return ""
        order = {id(made): number for number, made in enumerate(self.nodes)}
        fused = [
            name
            for name in node.input
            if name in self.producer and self.site(self.producer[name]) and self.readers[name] == 1
        ]
        if not fused or any(name in self.outputs for name in fused):
            return ""
        last = max(fused, key=lambda name: order[id(self.producer[name])])
        return next(name for name in node.input if name != last)


def quantisable(model: onnx.ModelProto, weights: Mapping[str, Array]) -> frozenset[str]:
    """The activations that `in_int8` wants ranges for.

    Raises:
        BuildError: ONNX's type inference rejects the model.
    """
    graph = Graph(model, weights)
    wanted = {graph.residual(node) for node in graph.nodes} - {""}
    for node in graph.nodes:
        if site := graph.site(node):
            wanted.add(node.input[site.data])
    return frozenset(wanted)


def in_int8(
    model: onnx.ModelProto,
    precision: str,
    weights: MutableMapping[str, Array],
    *,
    ranges: Mapping[str, Range],
    fixed: Mapping[str, Range],
    keep: Collection[str],
) -> onnx.ModelProto:
    """A copy of the model with Q/DQ pairs, all else in float32; arguments as of `precision.convert`.

    An activation without a range, or with one of width zero or infinite, is not quantised, nor is what reads it.

    Raises:
        BuildError: nothing is quantised, or ONNX's type inference rejects the model.
    """
    result = without_weights(model)
    result.graph.initializer.extend(model.graph.initializer)
    raise_opset(result)
    writer = _Writer(result, weights, precision, ranges, frozenset(keep))
    writer.rewrite()
    if not writer.sites:
        raise BuildError(
            f"nothing in it can be quantised: no {', '.join(sorted(_SUMS))} with constant weights and a usable range",
            "convert in fp16",
        )
    return result


class _Writer:
    def __init__(
        self,
        model: onnx.ModelProto,
        weights: MutableMapping[str, Array],
        precision: str,
        ranges: Mapping[str, Range],
        keep: frozenset[str],
    ) -> None:
        import onnx

        element, self.most = QUANTISED[precision]
        self.element = onnx.TensorProto.DataType.Value(element)
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(self.element)
        # fp8's steps grow with the value: clipping would gain nothing there, whatever the method.
        self.amax = {name: r.amax if precision == "int8" else r.seen for name, r in ranges.items()}
        self.model = model
        self.graph = Graph(model, weights)
        self.weights = weights
        self.keep = keep
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[str, int], str] = {}
        """The 8-bit form of tensors, by name and axis (-1: one scale)."""
        self.sites = 0

    def rewrite(self) -> None:
        for node in self.graph.nodes:
            if not self.keep.intersection(tagged(node)):
                self._quantise(node)
            self.nodes.append(node)
        del self.model.graph.node[:]
        self.model.graph.node.extend(self.nodes)
        del self.model.graph.value_info[:]
        read = {name for node in self.nodes for name in node.input} | self.graph.outputs
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)

    def _quantise(self, node: onnx.NodeProto) -> None:
        site, residual = self.graph.site(node), self.graph.residual(node)
        if site and self._usable(node.input[site.data]):
            self.sites += 1
            node.input[site.data] = self._activation(node.input[site.data], node.doc_string)
            node.input[site.weight] = self._weight(node.input[site.weight], site.axis, node.doc_string)
        elif residual and self._usable(residual):
            place = list(node.input).index(residual)
            node.input[place] = self._activation(residual, node.doc_string)
        elif node.op_type in _POOLS and (node.input[0], -1) in self.made:
            node.input[0] = self.made[node.input[0], -1]

    def _usable(self, name: str) -> bool:
        return self._given(name) or (0 < self.amax.get(name, 0) < np.inf)

    def _given(self, name: str) -> bool:
        """Whether the model itself has quantised a tensor."""
        return name in self.graph.producer and self.graph.producer[name].op_type == "DequantizeLinear"

    def _activation(self, name: str, doc_string: str) -> str:
        if self._given(name):
            return name
        if (name, -1) not in self.made:
            scale = self._constant(f"{name}__scale", _scales(np.array(self.amax[name], np.float32), self.most))
            zero = self._zero(f"{name}__zero", ())
            self._node("QuantizeLinear", [name, scale, zero], f"{name}__q", doc_string)
            self._node("DequantizeLinear", [f"{name}__q", scale, zero], f"{name}__dq", doc_string)
            self.made[name, -1] = f"{name}__dq"
        return self.made[name, -1]

    def _weight(self, name: str, axis: int, doc_string: str) -> str:
        import onnx

        if (name, axis) not in self.made:
            values, stem = self.graph.value(name), f"{name}__{axis}"
            scales = _scales(_amax(values, axis), self.most)
            stored = np.empty(values.shape, self.dtype)
            for rows in _rows(values):
                wide = scales.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
                wide = wide[rows] if axis == 0 else wide
                stored[rows] = self._rounded(values[rows] / wide)
            if key_of(self.graph.constants[name]) is None:
                tensor = onnx.helper.make_tensor(f"{stem}__q", self.element, values.shape, stored.tobytes(), raw=True)
            else:
                self.weights[f"{stem}__q"] = stored
                tensor = stand_in(f"{stem}__q", self.element, values.shape, f"{stem}__q")
            self.model.graph.initializer.append(tensor)
            inputs = [f"{stem}__q", self._constant(f"{stem}__scale", scales), self._zero(f"{stem}__zero", scales.shape)]
            self._node("DequantizeLinear", inputs, f"{stem}__dq", doc_string, axis)
            self.made[name, axis] = f"{stem}__dq"
        return self.made[name, axis]

    def _rounded(self, values: npt.NDArray[np.float32]) -> Array:
        clipped = np.clip(values, -self.most, self.most)
        rounded: Array = (np.rint(clipped) if self.dtype == np.int8 else clipped).astype(self.dtype)
        return rounded

    def _constant(self, name: str, values: Array) -> str:
        import onnx

        self.model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
        return name

    def _zero(self, name: str, shape: tuple[int, ...]) -> str:
        import onnx

        raw = np.zeros(shape, self.dtype).tobytes()
        self.model.graph.initializer.append(onnx.helper.make_tensor(name, self.element, shape, raw, raw=True))
        return name

    def _node(self, op: str, inputs: list[str], output: str, doc_string: str, axis: int | None = None) -> None:
        import onnx

        self.nodes.append(onnx.helper.make_node(op, inputs, [output], output, doc_string, axis=axis))


def _scales(amax: npt.NDArray[np.float32], most: float) -> npt.NDArray[np.float32]:
    """Steps that reach `amax`, as numbers that float16 has too; 1 where all is 0."""
    steps = amax / np.float32(most)
    half = np.maximum(steps, _SMALLEST_SCALE).astype(np.float16)
    up = np.where(half.astype(np.float32) < steps, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
    return np.where(steps > 0, up, 1).astype(np.float32)


def _amax(values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """The largest magnitude of each channel."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    parts = [np.abs(values[rows]).max(others) for rows in _rows(values)]
    return np.concatenate(parts) if axis == 0 else np.max(parts, 0)


def _rows(values: Array) -> Iterator[slice]:
    """Parts along the first axis: a large weight is a mapped file."""
    count = max(1, _BLOCK // max(1, values[:1].size))
    return (slice(start, start + count) for start in range(0, values.shape[0], count))
