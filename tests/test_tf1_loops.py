"""Graphs with loops of TensorFlow 1 convert: the loop stays in TensorFlow, what is around it becomes engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from fixtures import loops
from stages import engine_op
from tests.conftest import Converted, relative_error


def test_engines_before_and_after_a_loop_over_an_array_of_tensors(
    tmp_path: Path, converted: Callable[..., Converted]
) -> None:
    """The op that fills the array outside, and those that read it in the loop, share a resource: TensorFlow would draw
    control edges between them while the stitched function is traced, and then refuse to run it."""
    with tf.Graph().as_default():
        tf.compat.v1.disable_control_flow_v2()
        try:
            path = loops.row_by_row(tmp_path / "loop.pb")
        finally:
            tf.compat.v1.enable_control_flow_v2()
    graph_def = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    assert {"Enter", "NextIteration", "TensorArrayReadV3"} <= {node.op for node in graph_def.node}
    result = converted(str(path), backend="onnxruntime", outputs=("y:0",))
    assert len(result.report.regions) == 2
    assert result.left["LoopCond"] == "control flow"
    assert "Const" not in result.left
    x = loops.row_by_row_inputs()
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            expected = [session.run("y:0", {"x:0": rows}) for rows in (x, x[:1])]
    before = engine_op.stats()["region_0"]["engine_calls"]
    for rows, value in zip((x, x[:1]), expected, strict=True):
        (actual,) = result.run({"x": rows}).values()
        assert relative_error(value, actual) <= 1e-5
    assert engine_op.stats()["region_0"] == {"engine_calls": before + 2, "fallbacks": {}}
