"""What all tests share."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# In the background of a script SIGINT is ignored, and the programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from fixtures.example import Example
from pipeline import Config, Report, convert
from stages.backends.hardware import gpu_count


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if gpu_count():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """The command line sets the levels of loggers; other tests of the same process want them as they were."""
    loggers = [logging.getLogger(name) for name in ("pipeline", "stages", "absl")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@dataclass(frozen=True)
class Converted:
    """A finished conversion and the ways to look at it."""

    out: Path
    report: Report

    @property
    def in_engines(self) -> set[str]:
        """Names of the TensorFlow ops that engines run."""
        return {op for region in self.report.regions for op in region.ops}

    @property
    def left(self) -> dict[str, str]:
        """Op type of each op left in TensorFlow, with the reason."""
        return {op.op: op.reason.value for op in self.report.left_in_tensorflow}

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Call the stitched model's signature in this process, as eager TensorFlow does; a single input needs no name."""
        import tensorflow as tf

        import stages.engine_op  # noqa: F401 - makes TensorFlow know the op

        function = tf.saved_model.load(str(self.out / "saved_model")).signatures[self.report.signature]
        dtypes = {name: spec.dtype for name, spec in function.structured_input_signature[1].items()}
        if len(dtypes) == 1:
            inputs = dict(zip(dtypes, inputs.values(), strict=True))
        outputs = function(**{name: tf.constant(value, dtypes[name]) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., Converted]:
    """Convert a model, or an example of `fixtures` (saved first), into a folder of the test's own."""

    def run(model: object, **settings: object) -> Converted:
        if isinstance(model, Example):
            model = str(model.save(tmp_path / "model"))
        out = tmp_path / "out"
        return Converted(out, convert(model, out, Config(**settings)))  # type: ignore[arg-type]

    return run


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """max|a−b| / max|b|."""
    wide = expected.astype(np.float64)
    return float(np.abs(wide - actual).max() / np.abs(wide).max())
