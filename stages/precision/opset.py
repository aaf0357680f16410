"""A newer op set for a model, where its nodes mean the same there or can be written so that they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.precision.types import bodies

if TYPE_CHECKING:
    import onnx

QUANTISING = 19
"""The first op set with float16 scales, and with E4M3."""
_AXES = {f"Reduce{kind}" for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")}
"""From op set 18 on their axes are an input."""


def raise_opset(model: onnx.ModelProto) -> None:
    """Make a model of op set 13 to 18 one of op set 19, in place. Of what the ops that GraftRT exports mean, 18 and 19 change
    two things: reductions read their axes, and Split states how many outputs it has."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version < QUANTISING:
            entry.version = QUANTISING
            _rewrite(model.graph)
    model.ir_version = max(model.ir_version, 9)


def _rewrite(graph: onnx.GraphProto) -> None:
    import onnx

    for node in graph.node:
        axes = next((attribute for attribute in node.attribute if attribute.name == "axes"), None)
        if node.op_type in _AXES and axes is not None:
            name = f"{node.output[0]}__axes"
            graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(axes.ints)], axes.ints))
            node.input.append(name)
            node.attribute.remove(axes)
        if node.op_type == "Split" and len(node.input) < 2:
            node.attribute.append(onnx.helper.make_attribute("num_outputs", len(node.output)))
        for body in bodies(node):
            _rewrite(body)
