"""Keras's recurrent layers become part of engines, loops and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf_keras

from fixtures.recurrent import FEATURES, MODELS, STEPS, recurrent
from stages import engine_op
from stages.artifacts import ShapeRange
from stages.export import export
from stages.freeze import freeze
from stages.graph import Graph
from stages.regions import cut, extract
from stages.split import SplitOptions, split
from stages.translate import weights
from tests.conftest import Converted, relative_error


def masked_input(batch: int) -> np.ndarray:
    """Random values whose last steps are zero, which Masking skips."""
    x = np.random.default_rng(batch).standard_normal((batch, STEPS, FEATURES)).astype(np.float32)
    for row in range(batch):
        x[row, STEPS - row % STEPS :] = 0
    return x


def check_whole(name: str, library: ModuleType, folder: Path) -> None:
    """TensorRT for RTX takes the whole model as one region, with a loop in it, verified at two batch sizes."""
    frozen = freeze(recurrent(name, library), folder / "1")
    open_length = name.endswith("open_length")
    sizes = ShapeRange(frozen.input_names[0], (1, 4, FEATURES), (8, 8, FEATURES), (16, 12, FEATURES))
    options = SplitOptions(shapes=(sizes,) if open_length else ())
    partition = split(export(frozen, folder / "2"), folder / "3", options=options)
    assert not partition.left
    (region,) = partition.regions
    assert {node.op_type for node in onnx.load(region.model).graph.node} & {"Loop", "LSTM", "GRU"}
    assert region.max_rel_error is not None
    assert region.max_rel_error <= 1e-5
    ((bound,),) = region.profiles
    assert (bound.minimum[0], bound.maximum[0]) == ((1, 16) if open_length else (1, 32))


@pytest.mark.parametrize("name", MODELS)
def test_rtx_takes_a_keras_3_layer_whole(name: str, tmp_path: Path) -> None:
    check_whole(name, keras, tmp_path)


@pytest.mark.parametrize("name", ["lstm", "stacked", "gru_reset_before", "simple_sequences", "masked"])
def test_rtx_takes_a_keras_2_layer_whole(name: str, tmp_path: Path) -> None:
    check_whole(name, tf_keras, tmp_path)


@pytest.mark.parametrize("name", ["stacked", "masked_sequences"])
def test_a_stitched_recurrent_model_answers_like_keras_at_every_batch(
    name: str, converted: Callable[..., Converted]
) -> None:
    model = recurrent(name, keras)
    result = converted(model, backend="onnxruntime")
    assert not result.left
    engine_op.reset_stats()
    for batch in (1, 3, 9):
        x = masked_input(batch)
        (answer,) = result.run({"x": x}).values()
        assert relative_error(model(x).numpy(), answer) <= 1e-5  # type: ignore[operator]
    assert engine_op.stats() == {"region_0": {"engine_calls": 3, "fallbacks": {}}}


def test_folding_for_tf2onnx_leaves_loops_as_they_are(tmp_path: Path) -> None:
    """Grappler turned them into Switch and Merge, as which no recurrent layer could be translated."""
    graph = Graph(freeze(recurrent("lstm", keras), tmp_path / "1"))
    ops = [i for i in graph.computing() if graph.nodes[i].op != "NoOp"]
    subgraph = extract(graph, cut(graph, ops), weights_inside=True)
    light = weights.lighten(subgraph.graph_def, subgraph.outputs)
    folded = weights.fold(light, subgraph.inputs, subgraph.outputs)
    found = {node.op for node in folded.graph_def.node}
    assert "While" in found
    assert not found & {"Switch", "Merge", "Enter", "Exit", "NextIteration"}
    with tf.Graph().as_default():
        tf.import_graph_def(folded.graph_def, name="")
