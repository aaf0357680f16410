"""What an engine must save to pay for its boundary."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from stages.artifacts import Reason
from stages.candidates import Candidates
from stages.freeze import freeze
from stages.graph import Graph
from stages.regions import Cut, cut
from stages.worth import CALL_SECONDS, Estimate

Compute = Callable[[tf.Tensor], tf.Tensor]


def graph_of(compute: Compute, shape: tuple[int | None, ...], folder: Path) -> Graph:
    function = tf.function(compute, input_signature=[tf.TensorSpec(shape)], autograph=False)
    return Graph(freeze(function, folder / "frozen"))


def saved(compute: Compute, shape: tuple[int | None, ...], folder: Path) -> float:
    graph = graph_of(compute, shape, folder)
    return Estimate(graph).saved_seconds(cut(graph, graph.computing()))


def elementwise(count: int) -> Compute:
    def compute(x: tf.Tensor) -> tf.Tensor:
        for _ in range(count):
            x = tf.tanh(x)
        return x

    return compute


def convolutions(x: tf.Tensor) -> tf.Tensor:
    for _ in range(6):
        x = tf.nn.relu(tf.nn.conv2d(x, tf.ones([3, 3, 64, 64]), 1, "SAME"))
    return x


def test_two_tiny_ops_are_not_worth_a_call_and_ten_are(tmp_path: Path) -> None:
    assert saved(elementwise(1), (4, 4), tmp_path / "1") < 0
    assert saved(elementwise(10), (4, 4), tmp_path / "10") > 2 * CALL_SECONDS


def test_a_few_passes_over_a_large_tensor_cost_no_more_than_its_copies(tmp_path: Path) -> None:
    large = (None, 1024, 1024, 32)
    assert saved(elementwise(2), large, tmp_path / "2") < 0
    assert saved(elementwise(12), large, tmp_path / "12") > 0


def test_a_network_is_worth_an_engine(tmp_path: Path) -> None:
    assert saved(convolutions, (None, 56, 56, 64), tmp_path) > 0


def islands(x: tf.Tensor) -> tf.Tensor:
    """Thirty times one op that can be in an engine, and one that nobody translates."""
    for _ in range(30):
        x = tf.math.bessel_i0e(tf.sin(x))
    return x


@pytest.mark.parametrize(("min_region", "regions"), [(None, 0), (1, 30)])
def test_thirty_tiny_engines_happen_only_where_they_are_asked_for(
    min_region: int | None, regions: int, tmp_path: Path
) -> None:
    graph = graph_of(islands, (None, 4), tmp_path)
    candidates = Candidates(graph, tmp_path / "regions", keep_in_tf=(), min_region=min_region)
    found = candidates.settle()
    assert len(found) == regions
    if not regions:
        reasons = {op.reason: op.detail for op in candidates.left(found) if op.op == "Sin"}
        assert "would lose" in reasons[Reason.TOO_SMALL]


def test_a_measurement_can_take_the_estimates_place(tmp_path: Path) -> None:
    class Measured:
        def __init__(self) -> None:
            self.asked: list[Cut] = []

        def saved_seconds(self, boundary: Cut) -> float:
            self.asked.append(boundary)
            return 1.0

    graph = graph_of(islands, (None, 4), tmp_path)
    candidates = Candidates(graph, tmp_path / "regions", keep_in_tf=(), min_region=None)
    candidates.worth = measured = Measured()
    assert len(candidates.settle()) == 30
    assert len(measured.asked) == 30
