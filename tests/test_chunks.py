"""Clusters too large for the builder are cut in pieces, where few tensors cross."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from stages import candidates
from stages.artifacts import FrozenGraph
from stages.chunks import chunks
from stages.freeze import freeze
from stages.graph import Graph
from tests.test_properties import check_conversion, check_structure


def ladder(folder: Path, steps: int) -> FrozenGraph:
    """Steps of one op in which one tensor is alive (the sum) or three are (the sum's parts)."""

    @tf.function(input_signature=[tf.TensorSpec([None, 4])], autograph=False)  # type: ignore[untyped-decorator]
    def compute(x: tf.Tensor) -> tf.Tensor:
        for _ in range(steps):
            x = tf.add_n([tf.exp(x), tf.tanh(x), tf.sin(x)])
        return x

    return freeze(compute, folder / "freeze")


def test_a_small_cluster_stays_whole(tmp_path: Path) -> None:
    graph = Graph(ladder(tmp_path, 2))
    ops = graph.computing()
    assert chunks(graph, ops, len(ops)) == [tuple(ops)]


@pytest.mark.parametrize("most", [5, 8, 13])
def test_pieces_are_cut_where_fewest_tensors_cross(most: int, tmp_path: Path) -> None:
    graph = Graph(ladder(tmp_path, 10))
    ops = graph.computing()
    pieces = chunks(graph, ops, most)
    assert [op for piece in pieces for op in piece] == ops
    assert all(most // 2 < len(piece) <= most for piece in pieces[:-1])
    assert {graph.nodes[piece[-1]].op for piece in pieces[:-1]} == {"AddN"}


@pytest.mark.parametrize("seed", range(8))
def test_pieces_are_convex_whatever_is_refused(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST_OPS", 2 + seed % 5)
    check_structure(seed)


@pytest.mark.parametrize("seed", range(300, 303))
def test_a_graph_in_pieces_equals_tensorflow(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST_OPS", 4)
    report = check_conversion(seed, "onnxruntime")
    assert all(len(region.ops) <= 4 for region in report.regions)
    assert np.isfinite([output.max_rel_error for output in report.verification.outputs]).all()
