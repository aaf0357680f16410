"""Shape profiles of regions inside the graph: learnt by running TensorFlow on real samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures.example import Weights
from stages import engine_op, storage
from stages.artifacts import Partition
from tests.conftest import Converted


class Filtered(tf.Module):  # type: ignore[misc]
    """Rows whose first value is positive, how many depends on the data (`Where` can't be in an engine), then a dense body."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Weights(31).variable(8, 8)

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, "x")])  # type: ignore[untyped-decorator]
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        kept = tf.gather(x, tf.where(x[:, 0] > 0)[:, 0])
        return {"y": tf.nn.softmax(tf.nn.relu(tf.matmul(tf.tanh(kept), self.weight)) + 1.0)}


class Sequences(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.weight = Weights(32).variable(8, 8)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 8], tf.float32, "x")])  # type: ignore[untyped-decorator]
    def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.reduce_mean(tf.nn.relu(tf.matmul(tf.tanh(x), self.weight)), axis=1)}


@pytest.fixture
def rows() -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, (64, 8)).astype(np.float32)


def save(module: tf.Module, folder: Path) -> str:
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})
    return str(folder)


def test_an_axis_that_depends_on_the_data_covers_what_the_samples_show(
    converted: Callable[..., Converted], tmp_path: Path, rows: np.ndarray
) -> None:
    rows[:, 0] = 1.0  # all 64 are kept; of random rows in [0, 1) as well, but never more than 32
    samples = ({"x": part} for part in (rows, rows[:5]))
    result = converted(save(Filtered(), tmp_path / "model"), backend="onnxruntime", samples=samples, keep_stages=True)
    (region,) = storage.load(Partition, result.out / "stages" / "split").regions
    (profile,) = region.profiles
    (inner,) = [axes for axes in profile if axes.maximum[-1] == 8]
    assert inner.minimum[0] <= 5
    assert inner.maximum[0] >= 64
    engine_op.reset_stats()
    result.run({"x": rows})
    assert engine_op.stats() == {"region_0": {"engine_calls": 1, "fallbacks": {}}}


def lengths(*sizes: int) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return ({"x": rng.random((2, size, 8), np.float32)} for size in sizes)


def test_lengths_of_the_samples_become_profiles_and_lengths_between_them_run_in_the_engine(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    result = converted(
        save(Sequences(), tmp_path / "model"),
        backend="onnxruntime",
        samples=lengths(3, 5, 90, 100),
        max_profiles=2,
        keep_stages=True,
    )
    (region,) = storage.load(Partition, result.out / "stages" / "split").regions
    assert [profile[0].maximum for profile in region.profiles] == [(32, 5, 8), (32, 100, 8)]
    assert all(profile[0].minimum == (1, 3, 8) for profile in region.profiles)
    engine_op.reset_stats()
    for length in (4, 50):
        result.run(next(lengths(length)))
    assert engine_op.stats()["region_0"] == {"engine_calls": 2, "fallbacks": {}}
