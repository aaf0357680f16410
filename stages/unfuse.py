"""Fused ops, which TensorFlow's own optimiser and TensorFlow.js write into saved graphs, as the ops they stand for.

tf2onnx knows none of them, and TensorFlow has no kernel for some. Source: `fused_ops` in TensorFlow's
`core/ops/nn_ops.cc` and in TensorFlow.js's `operation_mapper`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages.errors import ModelError

if TYPE_CHECKING:
    import tensorflow as tf

_BASES = {
    "_FusedConv2D": "Conv2D",
    "_FusedDepthwiseConv2dNative": "DepthwiseConv2dNative",
    "FusedDepthwiseConv2dNative": "DepthwiseConv2dNative",
    "_FusedMatMul": "MatMul",
}
_FUSED = _BASES.keys() | {"Prelu"}
_ACTIVATIONS = {"Relu", "Relu6", "Elu", "LeakyRelu", "Tanh", "Sigmoid"}
_PASSED_ON = {
    "Conv2D": ("T", "strides", "padding", "explicit_paddings", "data_format", "dilations"),
    "DepthwiseConv2dNative": ("T", "strides", "padding", "explicit_paddings", "data_format", "dilations"),
    "MatMul": ("T", "transpose_a", "transpose_b"),
}


def unfuse(graph_def: tf.compat.v1.GraphDef) -> None:
    """Replace fused convolutions, matrix products and Prelu by plain ops, in place; the last op keeps the name.

    Raises:
        ModelError: something is fused that has no plain form here.
    """
    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        if not any(node.op in _FUSED for node in nodes):
            continue
        plain = [part for node in nodes for part in _parts(node)]
        del nodes[:]
        nodes.extend(plain)


def _parts(node: tf.compat.v1.NodeDef) -> Iterator[tf.compat.v1.NodeDef]:
    if node.op not in _FUSED:
        yield node
        return
    data = [reference for reference in node.input if not reference.startswith("^")]
    controls = [reference for reference in node.input if reference.startswith("^")]
    if node.op == "Prelu":
        yield from _prelu(node, node.name, data[0], data[1], controls)
        return
    base = _BASES[node.op]
    steps = [step.decode() for step in node.attr["fused_ops"].list.s]
    extra = iter(data[2:])
    names = [f"{node.name}/unfused/{position}" for position in range(len(steps))] + [node.name]
    first = _node(node, names[0], base, [*data[:2], *controls])
    for key in _PASSED_ON[base]:
        if key in node.attr:
            first.attr[key].CopyFrom(node.attr[key])
    yield first
    for step, before, name in zip(steps, names, names[1:], strict=False):
        if step == "BiasAdd":
            bias = _node(node, name, "BiasAdd", [before, next(extra)])
            if "data_format" in node.attr:
                bias.attr["data_format"].CopyFrom(node.attr["data_format"])
            yield bias
        elif step == "Prelu":
            yield from _prelu(node, name, before, next(extra), ())
        elif step in _ACTIVATIONS:
            activation = _node(node, name, step, [before])
            if step == "LeakyRelu" and "leakyrelu_alpha" in node.attr:
                activation.attr["alpha"].f = node.attr["leakyrelu_alpha"].f
            yield activation
        else:
            raise ModelError(
                f"{node.name}: {node.op} with {step} has no plain form", "export the model without optimising it"
            )


def _prelu(
    node: tf.compat.v1.NodeDef, name: str, value: str, slope: str, controls: Iterator[str] | list[str] | tuple[str, ...]
) -> Iterator[tf.compat.v1.NodeDef]:
    """relu(x) − slope · relu(−x)"""
    yield _node(node, f"{name}/unfused/positive", "Relu", [value, *controls])
    yield _node(node, f"{name}/unfused/minus", "Neg", [value])
    yield _node(node, f"{name}/unfused/negative", "Relu", [f"{name}/unfused/minus"])
    yield _node(node, f"{name}/unfused/sloped", "Mul", [slope, f"{name}/unfused/negative"])
    yield _node(node, name, "Sub", [f"{name}/unfused/positive", f"{name}/unfused/sloped"])


def _node(like: tf.compat.v1.NodeDef, name: str, op: str, inputs: list[str]) -> tf.compat.v1.NodeDef:
    import tensorflow as tf

    node = tf.compat.v1.NodeDef(name=name, op=op, input=inputs, device=like.device)
    node.attr["T"].type = like.attr["T"].type or tf.float32.as_datatype_enum
    return node
