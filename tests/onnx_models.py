"""Tiny ONNX models, seeded, for the tests of what compiles them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stages.artifacts import Profile, ShapeRange

FLOAT, HALF, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
Sizes = Sequence[int | str | None]


def value(name: str, shape: Sizes, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    """float32, scaled so that a layer keeps the size of its input."""
    values: np.ndarray = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def conv(layers: int = 1, batch: int | str = "batch") -> onnx.ModelProto:
    """float32 NCHW (batch, 3, 16, 16) through `layers` of Conv and Relu to (batch, 8, 16, 16)."""
    nodes, constants, last, channels = [], {}, "input_0", 3
    for i in range(layers):
        name = "output_0" if i == layers - 1 else f"relu_{i}"
        nodes.append(
            helper.make_node("Conv", [last, f"w{i}"], [f"conv_{i}"], f"conv_{i}", f"tf:conv_{i}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"conv_{i}"], [name], f"relu_{i}", f"tf:relu_{i}"))
        constants[f"w{i}"] = weights(8, channels, 3, 3, seed=i)
        last, channels = name, 8
    return model(nodes, [value("input_0", [batch, 3, 16, 16])], [value("output_0", [batch, 8, 16, 16])], constants)


def conv_profile(*batches: int) -> Profile:
    return (ShapeRange("input_0", *((batch, 3, 16, 16) for batch in batches)),)


def matmul() -> onnx.ModelProto:
    """float32 (2, 16) times a constant, (2, 8)."""
    node = helper.make_node("MatMul", ["input_0", "w"], ["output_0"], "matmul")
    return model([node], [value("input_0", [2, 16])], [value("output_0", [2, 8])], {"w": weights(16, 8)})


def unknown_op() -> onnx.ModelProto:
    """Relu, an op that no library knows, Relu."""
    nodes = [
        helper.make_node("Relu", ["input_0"], ["a"], "first"),
        helper.make_node("MyOp", ["a"], ["b"], "mine", domain="custom"),
        helper.make_node("Relu", ["b"], ["output_0"], "last"),
    ]
    return model(nodes, [value("input_0", [2, 3])], [value("output_0", [2, 3])])


def unbuildable() -> onnx.ModelProto:
    """NonMaxSuppression: TensorRT for RTX parses it and has no implementation."""
    node = helper.make_node("NonMaxSuppression", ["input_0", "input_1", "most", "iou", "score"], ["output_0"], "nms")
    inputs = [value("input_0", [1, 50, 4]), value("input_1", [1, 1, 50])]
    limits: dict[str, np.ndarray] = {
        "most": np.array([5], np.int64),
        "iou": np.array([0.5], np.float32),
        "score": np.array([0.1], np.float32),
    }
    return model([node], inputs, [value("output_0", [None, 3], INT64)], limits)


def shape_input() -> onnx.ModelProto:
    """Reshape to a shape that is an input."""
    node = helper.make_node("Reshape", ["input_0", "input_1"], ["output_0"], "reshape")
    return model([node], [value("input_0", [2, 3]), value("input_1", [2], INT64)], [value("output_0", [None, None])])


def save(proto: onnx.ModelProto, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(proto.SerializeToString())
    return path


def run(proto: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    """Outputs by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {f"input_{i}": array for i, array in enumerate(inputs)}))
