"""fp16 and bf16: casts placed so that what gains computes in 16 bits, and what must stay float32 does.

Half precision follows TensorFlow's automatic mixed precision (`auto_mixed_precision_lists.h`): some ops gain from it,
some follow their inputs, all others stay in float32. Ready-made converters round every float32 op's result to
float16 at once, so that a float32 x² between two such ops overflows all the same; here float32 values stay float32
from op to op, and a cast stands only where a half-precision op reads one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.onnx_files import key_of, stand_in, without_weights
from stages.precision.bias import corrected, drift
from stages.precision.folding import fold_normalisation
from stages.precision.table import Range
from stages.precision.types import Types, bodies, captured, names_read
from stages.translate.provenance import tagged

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array


def _ops(*names: str) -> frozenset[str]:
    return frozenset(" ".join(names).split())


_GAIN = _ops("Conv ConvTranspose MatMul Gemm Einsum LSTM GRU RNN")
"""Tensor cores multiply in half precision and sum in float32."""
_BOUNDED = _ops("Sigmoid HardSigmoid Tanh Softsign Erf")
"""Within ±1, and flat where a large argument is coarse: safe in half precision even after a float32 op."""
_FOLLOW = _ops(
    # Half precision if all their float inputs are: elementwise and pooling ops…
    "Add Sub Mul Div Neg Abs Relu LeakyRelu PRelu ThresholdedRelu Elu Selu Gelu HardSwish Mish Clip Min Max",
    "BatchNormalization MaxPool AveragePool GlobalMaxPool ReduceMax ReduceMin",
    # …and ops that move data.
    "Identity Dropout Reshape Flatten Transpose Squeeze Unsqueeze Concat Split Slice Gather GatherND GatherElements",
    "Expand Tile Pad Where DepthToSpace SpaceToDepth Resize Softmax",
    # Scales beside int8 or E4M3 values are constants of the type of what is quantised.
    "QuantizeLinear DequantizeLinear",
)
# Float32 are all others. The reasons, for those that models have most:
#   ReduceSum, ReduceMean, GlobalAveragePool, ReduceL2, CumSum: a sum of 65,536 ones is infinite in float16 (and the means
#   of a layer normalisation may be exported as GlobalAveragePool);
#   LayerNormalization, InstanceNormalization, LRN, Pow, Mul of a tensor with itself: x² overflows above 255;
#   Exp, Log, Softplus, LogSoftmax, Reciprocal, Sqrt: results or arguments leave float16's range or lose its 10 bits;
#   Range, TopK, ArgMax, comparisons, Cast, OneHot: indices and thresholds, where rounding changes the answer;
#   Sin, Cos: a large angle is no longer one in float16;
#   NonMaxSuppression, RoiAlign, GridSample: coordinates above 2,048 are no longer exact.
_LONGEST_SOFTMAX = 4096
"""Above that length of the axis, or if it is open, the sum of a Softmax is taken in float32."""
_LARGEST_KERNEL = 256
"""Of an AveragePool: above so many elements its sum is taken in float32."""
_DATA_INPUTS = {"Resize": 1, "Upsample": 1}
"""How many leading inputs of an op take part; the others (scales) are float32 by ONNX's definition."""
_PART = 1 << 22
_MARGIN = 2.0
"""A tensor that came so near to the largest number on samples may pass it on other inputs."""


@dataclass(frozen=True, slots=True)
class Format:
    """A 16-bit float: its name in ONNX, its largest finite number and about its smallest normal one."""

    name: str
    element: str
    largest: float
    smallest: float


FORMATS = {
    "fp16": Format("fp16", "FLOAT16", 65504.0, 6.2e-5),
    # Its range is float32's. ONNX knows bfloat16 convolutions from op set 22 on; TensorRT's parser takes them in any.
    "bf16": Format("bf16", "BFLOAT16", 3.38e38, 1.2e-38),
}


def in_half(
    model: onnx.ModelProto,
    precision: str,
    weights: MutableMapping[str, Array],
    *,
    ranges: Mapping[str, Range],
    keep: Collection[str],
) -> onnx.ModelProto:
    """A copy of the model in fp16 or bf16; arguments as of `precision.convert`.

    Constants beyond the format's range stay float32, and so do the ops that read them, as do ops that read or make a
    tensor that left the range on samples.

    Raises:
        BuildError: ONNX's type inference rejects the model.
    """
    form = FORMATS[precision]
    result = without_weights(model)
    result.graph.initializer.extend(model.graph.initializer)
    fold_normalisation(result, weights)
    types = Types.of(result, precision)
    wide = frozenset(name for name, seen in ranges.items() if seen.seen > form.largest / _MARGIN)
    means = {name: seen.means for name, seen in ranges.items() if seen.means}
    _Scope(result.graph, types, weights, _Rules(form, wide, frozenset(keep), means)).rewrite()
    return result


@dataclass(frozen=True, slots=True)
class _Rules:
    """What holds for all scopes: the format, the tensors that leave its range, the TensorFlow ops to keep in float32, and
    the means of what convolutions read, by channel."""

    form: Format
    wide: frozenset[str]
    keep: frozenset[str]
    means: Mapping[str, tuple[float, ...]]


class _Scope:
    """One graph while it is rewritten. A tensor keeps its name in float32; its float16 form has a suffix.

    The body of a Loop or If is a scope of its own, with a suffix of its own since names are unique in a model: its
    inputs, outputs and what it reads from around it are float32.
    """

    def __init__(
        self,
        graph: onnx.GraphProto,
        types: Types,
        weights: MutableMapping[str, Array],
        rules: _Rules,
    ) -> None:
        types.scopes += 1
        self.suffix = f"__{rules.form.name}" if types.scopes == 1 else f"__{rules.form.name}_{types.scopes}"
        self.rules = rules
        self.graph = graph
        self.types = types
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.halves: set[str] = set()
        """Tensors whose float16 form exists."""
        self.fulls: set[str] = set()
        """Tensors, produced in float16, whose float32 form exists too."""
        self.produced_half: set[str] = set()
        self.sticky: set[str] = set()
        """Tensors produced by ops that had to stay in float32: ops that follow stay with them."""
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    self.constants[node.output[0]] = attribute.t
        floats = {name: tensor for name, tensor in self.constants.items() if self.types.is_float(name)}
        self.beyond = {name for name, tensor in floats.items() if _out_of_range(self._values(tensor), rules.form)}
        self.beyond.update(rules.wide)

    def rewrite(self) -> None:
        originals = list(self.graph.node)
        for node in originals:
            if self._goes_half(node):
                self._emit_half(node)
            else:
                self._emit_full(node)
        for output in self.graph.output:
            self._need_full(output.name, "")
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        self._drop_unread_constants()
        # Stale: they name types from before, and TensorRT and ONNX Runtime infer their own.
        del self.graph.value_info[:]

    def _floats(self, node: onnx.NodeProto) -> list[str]:
        """The float32 inputs that take part in the op's type."""
        return [name for name in node.input[: _DATA_INPUTS.get(node.op_type)] if name and self.types.is_float(name)]

    def _goes_half(self, node: onnx.NodeProto) -> bool:
        floats = self._floats(node)
        if self.rules.keep.intersection(tagged(node)) or self.beyond.intersection(node.output):
            return False
        known = all(name in self.types.elements for name in (*node.input, *node.output) if name)
        if node.domain not in ("", "ai.onnx") or not floats or not known or self.beyond.intersection(floats):
            return False
        if node.op_type in _GAIN | _BOUNDED:
            return True
        if node.op_type not in _FOLLOW or self.sticky.intersection(floats):
            return False
        if node.op_type == "Mul" and node.input[0] == node.input[1]:
            return False
        if node.op_type == "AveragePool":
            return math.prod(next(a.ints for a in node.attribute if a.name == "kernel_shape")) <= _LARGEST_KERNEL
        return node.op_type != "Softmax" or self._softmax_is_short(node)

    def _softmax_is_short(self, node: onnx.NodeProto) -> bool:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
        lengths = self.types.lengths.get(node.input[0], ())
        length = lengths[axis] if -len(lengths) <= axis < len(lengths) else None
        return length is not None and length <= _LONGEST_SOFTMAX

    def _emit_half(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Conv" and node.input[0] in self.rules.means:
            self._correct(node, self.rules.means[node.input[0]])
        for index, name in enumerate(node.input):
            if not name or not self.types.is_float(name):
                continue
            if index < _DATA_INPUTS.get(node.op_type, len(node.input)):
                node.input[index] = self._need_half(name, node.doc_string)
            else:
                self._need_full(name, node.doc_string)
        for index, name in enumerate(node.output):
            if name and self.types.is_float(name):
                self.produced_half.add(name)
                self.halves.add(name)
                node.output[index] = name + self.suffix
        self.nodes.append(node)

    def _emit_full(self, node: onnx.NodeProto) -> None:
        for body in bodies(node):
            for name in captured(body):
                self._need_full(name, node.doc_string)
            _Scope(body, self.types, self.weights, self.rules).rewrite()
        for name in node.input:
            self._need_full(name, node.doc_string)
        if node.op_type != "Constant":
            self.sticky.update(name for name in node.output if self.types.is_float(name))
        self.nodes.append(node)

    def _need_half(self, name: str, doc_string: str) -> str:
        import onnx

        half, element = name + self.suffix, onnx.TensorProto.DataType.Value(self.rules.form.element)
        if name not in self.halves:
            self.halves.add(name)
            if name in self.constants:
                values = self._values(self.constants[name]).astype(onnx.helper.tensor_dtype_to_np_dtype(element))
                if key_of(self.constants[name]) is None:
                    self.graph.initializer.append(onnx.numpy_helper.from_array(values, half))
                else:
                    self.weights[half] = values
                    self.graph.initializer.append(stand_in(half, element, values.shape, half))
            else:
                self._cast(name, half, element, doc_string)
        return half

    def _correct(self, node: onnx.NodeProto, means: tuple[float, ...]) -> None:
        """Correct the bias of a convolution for what rounding does to its weights."""
        import onnx

        kernel, *biases = (name for name in node.input[1:] if name)
        if any(name not in self.constants for name in (kernel, *biases)):
            return
        element = onnx.TensorProto.DataType.Value(self.rules.form.element)
        values = self._values(self.constants[kernel])
        rounded = values.astype(onnx.helper.tensor_dtype_to_np_dtype(element))
        before = self._values(self.constants[biases[0]]) if biases else None
        name = f"{node.output[0]}__corrected"
        self.constants[name] = onnx.numpy_helper.from_array(corrected(before, drift(values, rounded), means), name)
        self.types.elements[name] = onnx.TensorProto.FLOAT
        self.graph.initializer.append(self.constants[name])
        del node.input[2:]
        node.input.append(name)

    def _values(self, tensor: onnx.TensorProto) -> Array:
        import onnx

        key = key_of(tensor)
        values: Array = onnx.numpy_helper.to_array(tensor) if key is None else self.weights[key]
        return values

    def _need_full(self, name: str, doc_string: str) -> None:
        import onnx

        if name in self.produced_half and name not in self.fulls:
            self.fulls.add(name)
            self._cast(name + self.suffix, name, onnx.TensorProto.FLOAT, doc_string)

    def _cast(self, source: str, target: str, to: int, doc_string: str) -> None:
        import onnx

        node = onnx.helper.make_node("Cast", [source], [target], f"{target}/cast", doc_string, to=to)
        self.nodes.append(node)

    def _drop_unread_constants(self) -> None:
        read = names_read(self.graph.node)
        read.update(output.name for output in self.graph.output)
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)


def _out_of_range(values: Array, form: Format) -> bool:
    """Whether a float32 constant overflows, or is one number, such as an epsilon, that vanishes."""
    largest = max((_largest(part) for part in _parts(values)), default=0.0)
    return largest > form.largest or (values.size == 1 and 0 < largest < form.smallest)


def _largest(values: Array) -> float:
    """The largest finite magnitude."""
    import numpy as np

    return float(np.max(abs(values), initial=0, where=np.isfinite(values)))


def _parts(values: Array) -> Iterator[Array]:
    """Some elements at a time: the weights of a large model are a mapped file, and a copy of them is too much."""
    flat = values.reshape(-1)
    return (flat[start : start + _PART] for start in range(0, flat.size, _PART))
