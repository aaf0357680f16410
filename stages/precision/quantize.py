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
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.errors import BuildError
from stages.onnx_files import key_of, stand_in, without_weights
from stages.precision.bias import Floats, corrected, drift
from stages.precision.fake import chain, without_inverses
from stages.precision.folding import fold_normalisation
from stages.precision.opset import raise_opset
from stages.precision.sites import SUMS, Graph, Site
from stages.precision.table import Range
from stages.precision.types import names_read
from stages.translate.provenance import tagged

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array

QUANTISED = {"int8": ("INT8", 127.0), "fp8": ("FLOAT8E4M3FN", 448.0)}
"""By precision: the element type, and the largest magnitude that it holds."""
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})
_SMALLEST_SCALE, _LARGEST_SCALE = 2.0**-24, 65472.0
"""float16's smallest number, and about its largest: scales are float16 where the remainder is."""
_BLOCK = 1 << 22


def in_8_bits(
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
    result, sites = with_pairs(model, precision, weights, ranges=ranges, fixed=fixed, keep=keep)
    if not sites and any(found.sensitive for found in ranges.values()):
        raise BuildError("all that can be quantised is too sensitive for 8 bits", "--int8-error with more than 0.015")
    if not sites:
        raise BuildError(
            f"nothing in it can be quantised: no {', '.join(sorted(SUMS))} with constant weights and a usable range",
            "convert in fp16",
        )
    return result


def with_pairs(
    model: onnx.ModelProto,
    precision: str,
    weights: MutableMapping[str, Array],
    *,
    ranges: Mapping[str, Range],
    fixed: Mapping[str, Range],
    keep: Collection[str],
) -> tuple[onnx.ModelProto, int]:
    """As `in_8_bits`; also how many nodes compute in 8 bits, which may be none."""
    result = without_weights(model)
    result.graph.initializer.extend(model.graph.initializer)
    raise_opset(result)
    fold_normalisation(result, weights)
    writer = _Writer(result, weights, precision, ranges, frozenset(keep))
    writer.state(fixed)
    writer.rewrite()
    return result, writer.sites


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
        usable = {name: r for name, r in ranges.items() if not (r.sensitive and precision == "int8")}
        self.amax = {name: r.amax if precision == "int8" else r.seen for name, r in usable.items()}
        self.means = {name: r.means for name, r in usable.items() if r.means}
        self.model = model
        self.graph = Graph(model, weights)
        self.weights = weights
        self.keep = keep
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[str, int], str] = {}
        """The 8-bit form of tensors, by name and axis (-1: one scale)."""
        self.drifts: dict[str, Floats] = {}
        """What rounding adds to the weights of convolutions, summed over the kernel: (output channels, its inputs)."""
        self.sites = 0

    def state(self, fixed: Mapping[str, Range]) -> None:
        """Make Q/DQ pairs of the model's own fake quantisation; what transposes among its steps does so behind them."""
        nodes = list(self.model.graph.node)
        for op, stated in fixed.items():
            steps = [] if op in self.keep else chain(nodes, self.graph.constants, op)
            if not steps or any(not self.graph.read_once(step.output[0]) for step in steps[:-1]):
                continue
            source = next(name for name in steps[0].input if name not in self.graph.constants)
            scale = np.array(stated.amax / self.most, np.float32)
            made = [
                *self._pair(source, op, scale, steps[0].doc_string),
                *(n for n in steps if n.op_type == "Transpose"),
            ]
            end = steps[-1].output[0]
            for before, after in pairwise(made):
                after.input[0] = before.output[0]
            made[-1].output[0] = end
            place, gone = nodes.index(steps[-1]), {step.name for step in steps}
            head, tail = ([node for node in part if node.name not in gone] for part in (nodes[:place], nodes[place:]))
            nodes = [*head, *made, *tail]
        nodes = without_inverses(nodes, self.graph.outputs)
        self._replace(nodes)
        self.graph = Graph(self.model, self.weights)

    def rewrite(self) -> None:
        plan = [(node, self.graph.site(node), self.graph.residual(node)) for node in self.graph.nodes]
        for node, site, residual in plan:
            if not self.keep.intersection(tagged(node)):
                self._quantise(node, site, residual)
            self.nodes.append(node)
        self._replace(self.nodes)

    def _replace(self, nodes: list[onnx.NodeProto]) -> None:
        """Make these the model's nodes."""
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes)
        del self.model.graph.value_info[:]
        read = names_read(nodes) | self.graph.outputs
        kept = [tensor for tensor in self.model.graph.initializer if tensor.name in read]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)

    def _quantise(self, node: onnx.NodeProto, site: Site | None, residual: str) -> None:
        if site and self._usable(node.input[site.data]):
            self.sites += 1
            data, weight = node.input[site.data], node.input[site.weight]
            node.input[site.data] = self._activation(data, node.doc_string)
            node.input[site.weight] = self._weight(weight, site.axis, node.doc_string)
            if node.op_type == "Conv" and data in self.means:
                self._correct(node, self.means[data], self.drifts[weight])
        elif residual and self._usable(residual):
            place = list(node.input).index(residual)
            node.input[place] = self._activation(residual, node.doc_string)
        elif node.op_type in _POOLS and (node.input[0], -1) in self.made:
            node.input[0] = self.made[node.input[0], -1]

    def _usable(self, name: str) -> bool:
        return self.graph.dequantised(name) or (0 < self.amax.get(name, 0) < np.inf)

    def _activation(self, name: str, doc_string: str) -> str:
        if self.graph.dequantised(name):
            return name
        if (name, -1) not in self.made:
            scale = _scales(np.array(self.amax[name], np.float32), self.most)
            self.nodes += self._pair(name, name, scale, doc_string)
            self.made[name, -1] = f"{name}__dq"
        return self.made[name, -1]

    def _pair(self, source: str, stem: str, scale: npt.NDArray[np.float32], doc_string: str) -> list[onnx.NodeProto]:
        inputs = [self._constant(f"{stem}__scale", scale), self._zero(f"{stem}__zero", ())]
        return [
            _node("QuantizeLinear", [source, *inputs], f"{stem}__q", doc_string),
            _node("DequantizeLinear", [f"{stem}__q", *inputs], f"{stem}__dq", doc_string),
        ]

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
            if values.ndim > 2 and axis == 0:
                steps = scales.reshape(-1, *[1] * (values.ndim - 1))
                parts = [drift(values[rows], stored[rows].astype(np.float32) * steps[rows]) for rows in _rows(values)]
                self.drifts[name] = np.concatenate(parts)
            if key_of(self.graph.constants[name]) is None:
                tensor = onnx.helper.make_tensor(f"{stem}__q", self.element, values.shape, stored.tobytes(), raw=True)
            else:
                self.weights[f"{stem}__q"] = stored
                tensor = stand_in(f"{stem}__q", self.element, values.shape, f"{stem}__q")
            self.model.graph.initializer.append(tensor)
            inputs = [f"{stem}__q", self._constant(f"{stem}__scale", scales), self._zero(f"{stem}__zero", scales.shape)]
            self.nodes.append(_node("DequantizeLinear", inputs, f"{stem}__dq", doc_string, axis))
            self.made[name, axis] = f"{stem}__dq"
        return self.made[name, axis]

    def _correct(self, node: onnx.NodeProto, means: tuple[float, ...], drift: Floats) -> None:
        name = node.input[2] if len(node.input) > 2 else ""
        if not name or name in self.graph.constants:
            bias = corrected(self.graph.value(name) if name else None, drift, means)
            del node.input[2:]
            node.input.append(self._constant(f"{node.output[0]}__corrected", bias))

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


def _node(op: str, inputs: list[str], output: str, doc_string: str, axis: int | None = None) -> onnx.NodeProto:
    import onnx

    return onnx.helper.make_node(op, inputs, [output], output, doc_string, axis=axis)


def _scales(amax: npt.NDArray[np.float32], most: float) -> npt.NDArray[np.float32]:
    """Steps that reach `amax`, as numbers that float16 has too; 1 where all is 0."""
    steps = amax / np.float32(most)
    half = np.clip(steps, _SMALLEST_SCALE, _LARGEST_SCALE).astype(np.float16)
    up = np.where(half.astype(np.float32) < steps, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
    return np.where(steps > _LARGEST_SCALE, steps, np.where(steps > 0, up, 1)).astype(np.float32)


def _amax(values: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """The largest magnitude of each channel."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    parts = [np.abs(values[rows]).max(others) for rows in _rows(values)]
    return np.concatenate(parts) if axis == 0 else np.max(parts, 0)


def _rows(values: Array) -> Iterator[slice]:
    """Parts along the first axis: a large weight is a mapped file."""
    count = max(1, _BLOCK // max(1, values[:1].size))
    return (slice(start, start + count) for start in range(0, values.shape[0], count))
