"""Load the custom ops that a model uses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from stages.errors import ModelError
from stages.model import first_line


def load(paths: Iterable[Path]) -> None:
    """Load shared libraries of TensorFlow ops. Who serves the stitched model must load them too.

    Raises:
        ModelError: a library is missing, or TensorFlow can't load it.
    """
    for path in paths:
        import tensorflow as tf

        if not path.is_file():
            raise ModelError(f"{path}: no such library", "give the .so file of the ops")
        try:
            tf.load_op_library(str(path.resolve()))
        except (RuntimeError, tf.errors.OpError) as error:
            raise ModelError(
                f"{path}: TensorFlow can't load it: {first_line(error)}", f"build it for TensorFlow {tf.__version__}"
            ) from error
