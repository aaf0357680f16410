"""The child process of `stages.exporters.Exporters`: exports sub-graphs, one JSON line per task and per attempt."""

from __future__ import annotations

import json
from pathlib import Path

from stages import recordjson
from stages.artifacts import read_weight
from stages.childprocess import serve
from stages.exporting import Attempt, Task, export_to

ROOT = Path("/")
"""What the paths in messages are relative to."""


def main(_: str) -> None:
    """Answer until standard input ends."""
    serve(_hello, lambda line, _: json.dumps(recordjson.encode(_answer(json.loads(line)), ROOT)))


def _hello() -> str:
    from stages.translate import translatable_ops

    translatable_ops()  # imports TensorFlow and tf2onnx
    return "{}"


def _answer(message: recordjson.Json) -> Attempt:
    import tensorflow as tf

    task = recordjson.decode(Task, message, ROOT)
    graph_def = tf.compat.v1.GraphDef()
    try:
        graph_def.ParseFromString(task.graph.read_bytes())
        weights = {weight.node: read_weight(task.source, weight) for weight in task.weights}
        return export_to(task.target, graph_def, task.inputs, task.outputs, weights)
    # The parent tries what failed here itself, and raises what there is to raise.
    except Exception as error:  # noqa: BLE001
        return Attempt(task.target, failure=f"{type(error).__name__}: {error}")
