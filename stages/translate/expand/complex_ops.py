"""Ops on complex numbers, as ops on their real and imaginary parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.compare import Array
from stages.translate.expand.call import Call, Pair, Result, Rule, Untranslatable, Value

if TYPE_CHECKING:
    import tensorflow as tf

PER_PART = (
    *("Identity", "IdentityN", "Snapshot", "StopGradient", "PreventGradient", "EnsureShape"),
    *("Reshape", "ExpandDims", "Squeeze", "Transpose", "ConcatV2", "Pack", "Unpack", "Split", "SplitV", "Slice"),
    *(
        "StridedSlice",
        "Gather",
        "GatherV2",
        "GatherNd",
        "Tile",
        "BroadcastTo",
        "Pad",
        "PadV2",
        "MirrorPad",
        "ReverseV2",
    ),
    *("Roll", "ReverseSequence", "Select", "SelectV2", "SpaceToBatchND", "BatchToSpaceND", "MatrixDiagV3", "ZerosLike"),
    *("MatrixDiagPartV3", "MatrixBandPart", "Diag", "DiagPart", "Fill", "ScatterNd", "TensorScatterUpdate"),
    *("Add", "AddV2", "AddN", "Sub", "Neg", "Sum", "Mean", "Cumsum", "UnsortedSegmentSum", "BiasAdd"),
)
"""Ops that do to both parts what they do to a real tensor: they move values or add them up."""


def _same_op(call: Call, inputs: list[tf.Tensor]) -> list[tf.Tensor]:
    """The op itself, on real inputs."""
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    node = graph_def.node.add()
    node.CopyFrom(call.op.node_def)
    node.name = "part"
    types = {tf.complex64.as_datatype_enum: tf.float32.as_datatype_enum}
    types[tf.complex128.as_datatype_enum] = tf.float64.as_datatype_enum
    for attr in node.attr.values():
        if attr.HasField("type"):
            attr.type = types.get(attr.type, attr.type)
        elif attr.list.type:
            attr.list.type[:] = [types.get(kind, kind) for kind in attr.list.type]
    if "_output_shapes" in node.attr:
        del node.attr["_output_shapes"]
    del node.input[:]
    feeds = {}
    for index, tensor in enumerate(inputs):
        stand_in = graph_def.node.add(name=f"in_{index}", op="Placeholder")
        stand_in.attr["dtype"].type = tensor.dtype.as_datatype_enum
        node.input.append(stand_in.name)
        feeds[f"in_{index}:0"] = tensor
    wanted = [f"part:{index}" for index in range(len(call.op.outputs))]
    return list(tf.import_graph_def(graph_def, input_map=feeds, return_elements=wanted, name="part"))


def _per_part(call: Call) -> Result:
    halves = []
    for part in ("re", "im"):
        halves.append(_same_op(call, [getattr(v, part) if isinstance(v, Pair) else v for v in call.inputs]))
    ends: list[Value] = []
    for tensor, re, im in zip(call.op.outputs, *halves, strict=True):
        ends.append(Pair(re, im) if tensor.dtype.is_complex else re)
    return ends


def _sizes(call: Call) -> Result:
    """Shape, Size, Rank, ShapeN: those of the real part are those of the whole."""
    return _same_op(call, [value.re if isinstance(value, Pair) else value for value in call.inputs])


def _const(call: Call) -> Result:
    import tensorflow as tf

    if call.op.name in call.weights:
        import numpy as np

        flat = np.frombuffer(call.weights[call.op.name], call.op.outputs[0].dtype.as_numpy_dtype)
        value: Array = flat.reshape(call.op.outputs[0].shape.as_list())
    else:
        value = tf.make_ndarray(call.op.get_attr("value"))
    return Pair(tf.constant(value.real.copy()), tf.constant(value.imag.copy()))


def _complex(call: Call) -> Result:
    """Parts of different shapes, or of sizes that may turn out so, are broadcast: less zero, which keeps negative zeros."""
    import tensorflow as tf

    re, im = call.real(0), call.real(1)
    if re.shape.is_fully_defined() and re.shape == im.shape:
        return Pair(re, im)
    return Pair(re - tf.zeros_like(im), im - tf.zeros_like(re))


def _cast(call: Call) -> Result:
    import tensorflow as tf

    value, wanted = call.inputs[0], call.op.outputs[0].dtype
    if not isinstance(value, Pair):
        re = tf.cast(value, wanted.real_dtype)
        return Pair(re, tf.zeros_like(re))
    if wanted.is_complex:
        return Pair(tf.cast(value.re, wanted.real_dtype), tf.cast(value.im, wanted.real_dtype))
    return tf.cast(value.re, wanted)


def multiply(a: Pair, b: Pair) -> Pair:
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def conjugate(a: Pair) -> Pair:
    return Pair(a.re, -a.im)


def _divide(call: Call) -> Result:
    import tensorflow as tf

    a, b = call.pair(0), call.pair(1)
    # Scaled by the larger part of the divisor, whose square would overflow from 1.8e19 on.
    scale = tf.maximum(tf.abs(b.re), tf.abs(b.im))
    re, im = b.re / scale, b.im / scale
    product = multiply(a, Pair(re, -im))
    size = (re * re + im * im) * scale
    return Pair(product.re / size, product.im / size)


def _no_nan(call: Call) -> Result:
    import tensorflow as tf

    quotient = _divide(call)
    assert isinstance(quotient, Pair)
    b = call.pair(1)
    zero = tf.logical_and(tf.equal(b.re, 0), tf.equal(b.im, 0))
    parts = (tf.where(zero, tf.zeros_like(part), part) for part in (quotient.re, quotient.im))
    return Pair(*parts)


def magnitude(z: Pair) -> tf.Tensor:
    """|z| without a square that overflows or vanishes."""
    import tensorflow as tf

    re, im = tf.abs(z.re), tf.abs(z.im)
    large, small = tf.maximum(re, im), tf.minimum(re, im)
    ratio = small / tf.maximum(large, tf.constant(large.dtype.as_numpy_dtype(1e-38)))
    return large * tf.sqrt(1 + ratio * ratio)


def _exp(call: Call) -> Result:
    import tensorflow as tf

    z = call.pair(0)
    size = tf.exp(z.re)
    return Pair(size * tf.cos(z.im), size * tf.sin(z.im))


def _log(call: Call) -> Result:
    import tensorflow as tf

    z = call.pair(0)
    return Pair(tf.math.log(magnitude(z)), tf.atan2(z.im, z.re))


def _equal(call: Call) -> Result:
    import tensorflow as tf

    a, b = call.pair(0), call.pair(1)
    same = tf.logical_and(tf.equal(a.re, b.re), tf.equal(a.im, b.im))
    return same if call.op.type == "Equal" else tf.logical_not(same)


def _angle(call: Call) -> Result:
    import tensorflow as tf

    z = call.pair(0)
    return tf.atan2(z.im, z.re)


def _matmul(call: Call) -> Result:
    """(A + iB)(C + iD), three products would do but lose digits; adjoint is transposed and conjugated."""
    import tensorflow as tf

    adjoint = call.op.type != "MatMul"
    flags = ("adj_x", "adj_y") if adjoint else ("transpose_a", "transpose_b")
    turned = [bool(call.attr(flag)) for flag in flags]
    a, b = (conjugate(call.pair(i)) if adjoint and turned[i] else call.pair(i) for i in (0, 1))

    def product(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.matmul(x, y, transpose_a=turned[0], transpose_b=turned[1])

    return Pair(product(a.re, b.re) - product(a.im, b.im), product(a.re, b.im) + product(a.im, b.re))


def _einsum(call: Call) -> Result:
    import tensorflow as tf

    equation = call.op.get_attr("equation").decode()
    if len(call.inputs) == 1:
        z = call.pair(0)
        return Pair(tf.einsum(equation, z.re), tf.einsum(equation, z.im))
    if len(call.inputs) != 2:
        raise Untranslatable("Einsum of more than two complex numbers has no translation")
    a, b = call.pair(0), call.pair(1)

    def product(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.Einsum(inputs=[x, y], equation=equation)

    return Pair(product(a.re, b.re) - product(a.im, b.im), product(a.re, b.im) + product(a.im, b.re))


def _conjugate_transpose(call: Call) -> Result:
    import tensorflow as tf

    z, order = conjugate(call.pair(0)), call.real(1)
    return Pair(tf.transpose(z.re, order), tf.transpose(z.im, order))


def _ones(call: Call) -> Result:
    import tensorflow as tf

    re = call.pair(0).re
    return Pair(tf.ones_like(re), tf.zeros_like(re))


def _reciprocal(call: Call) -> Result:
    import tensorflow as tf

    z = call.pair(0)
    one = Pair(tf.ones_like(z.re), tf.zeros_like(z.re))
    return _divide(Call(call.op, (one, z), call.weights))


RULES: dict[str, Rule] = {
    **dict.fromkeys(PER_PART, _per_part),
    **dict.fromkeys(("Shape", "ShapeN", "Size", "Rank"), _sizes),
    **dict.fromkeys(("Div", "RealDiv"), _divide),
    **dict.fromkeys(("Reciprocal", "Inv"), _reciprocal),
    **dict.fromkeys(("Equal", "NotEqual"), _equal),
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _matmul),
    "Angle": _angle,
    "Cast": _cast,
    "Complex": _complex,
    "ComplexAbs": lambda call: magnitude(call.pair(0)),
    "Conj": lambda call: conjugate(call.pair(0)),
    "ConjugateTranspose": _conjugate_transpose,
    "Const": _const,
    "DivNoNan": _no_nan,
    "Einsum": _einsum,
    "Exp": _exp,
    "Imag": lambda call: call.pair(0).im,
    "Log": _log,
    "Mul": lambda call: multiply(call.pair(0), call.pair(1)),
    "OnesLike": _ones,
    "Real": lambda call: call.pair(0).re,
    "Square": lambda call: multiply(call.pair(0), call.pair(0)),
}
