"""The node that a model fails on is found, however the failure is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from stages.backends.isolated import Worker
from stages.surgery import first_failing_node


def chain(*op_types: str) -> onnx.ModelProto:
    """x → op → op → …, each op on 2 × 4 floats."""
    nodes = [
        onnx.helper.make_node(
            op_type, [f"t{i}", *(["one"] if op_type == "Add" else [])], [f"t{i + 1}"], name=f"node_{i}"
        )
        for i, op_type in enumerate(op_types)
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "chain",
        [value("t0", onnx.TensorProto.FLOAT, [2, 4])],
        [value(f"t{len(nodes)}", onnx.TensorProto.FLOAT, [2, 4])],
        [onnx.numpy_helper.from_array(np.ones(4, np.float32), "one")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("position", [0, 1, 4, 6])
def test_the_one_node_that_fails_is_named(tmp_path: Path, position: int) -> None:
    ops = ["Relu", "Add", "Sigmoid", "Add", "Relu", "Tanh", "Add"]
    ops[position] = "Sqrt"
    model = chain(*ops)
    seen: list[int] = []

    def fails(path: Path) -> bool:
        onnx.checker.check_model(str(path))
        prefix = onnx.load(path)
        seen.append(len(prefix.graph.node))
        return any(node.op_type == "Sqrt" for node in prefix.graph.node)

    assert first_failing_node(model, tmp_path, fails) == f"node_{position}"
    assert len(seen) <= 3
    assert list(tmp_path.iterdir()) == []


def test_prefixes_are_models_that_tensorrt_parses(tmp_path: Path) -> None:
    model = chain("Relu", "Add", "Sigmoid", "Relu")
    with Worker("tensorrt_rtx") as worker:
        assert first_failing_node(model, tmp_path, lambda path: not worker.check(path).accepted) == "node_3"
