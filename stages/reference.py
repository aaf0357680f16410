"""TensorFlow's own answer: a graph run as it is, any tensor fetched."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.artifacts import Tensor, load_weight
from stages.compare import Array
from stages.errors import SampleError, VerifyError
from stages.graph import Graph
from stages.importing import import_graph, trace
from stages.mapped import mapped_constant
from stages.saved_models import reopen

if TYPE_CHECKING:
    import tensorflow as tf


class Reference:
    """Runs a graph in TensorFlow on the CPU or GPU that TensorFlow would choose."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._weights = {
            f"{node}:0": mapped_constant(load_weight(graph.frozen, weight)) for node, weight in graph.weights.items()
        }
        self._source = reopen(graph.frozen) if graph.frozen.captures else None
        self._captures = {f"{node}:0": tensor for node, tensor in self._source.captured} if self._source else {}
        self._functions: dict[tuple[tuple[str, ...], tuple[Tensor, ...]], tf.types.experimental.ConcreteFunction] = {}

    def run(
        self,
        fetches: Sequence[str],
        inputs: Mapping[str, Array | tf.Tensor],
        replaced: Mapping[Tensor, Array] | None = None,
    ) -> dict[str, Array]:
        """The values of tensors of the graph.

        Args:
            fetches: tensor names.
            inputs: a value for each of the graph's inputs, by tensor name.
            replaced: values that other tensors of the graph are to have; what makes them is not run.

        Raises:
            SampleError: TensorFlow could not run the graph on these inputs (a VerifyError).
        """
        return {name: np.asarray(value.numpy()) for name, value in self.tensors(fetches, inputs, replaced).items()}

    def tensors(
        self,
        fetches: Sequence[str],
        inputs: Mapping[str, Array | tf.Tensor],
        replaced: Mapping[Tensor, Array] | None = None,
    ) -> dict[str, tf.Tensor]:
        """As `run`, but for values that numpy has no type for too: tensor lists, resources."""
        import tensorflow as tf

        given = replaced or {}
        fetches = tuple(dict.fromkeys(fetches))
        key = fetches, tuple(given)
        if key not in self._functions:
            self._functions[key] = self._function(*key)
        arguments = {
            f"input_{number}": value if tf.is_tensor(value) else tf.constant(value, tensor.dtype)
            for number, tensor in enumerate(self._graph.frozen.inputs)
            for value in [inputs[tensor.name]]
        } | {f"replaced_{i}": tf.constant(value, tensor.dtype) for i, (tensor, value) in enumerate(given.items())}
        try:
            with ieee_float32():
                values = self._functions[key](**arguments)
        except tf.errors.OpError as error:
            raise SampleError(
                f"TensorFlow can't run the model on sample inputs: {error_line(error)}",
                "give real ones with --samples inputs.npz",
            ) from error
        for name, value, result in zip(fetches, values, self._functions[key].outputs, strict=True):
            if not result.shape.is_compatible_with(value.shape):  # as a dead tensor's
                raise VerifyError(
                    f"{name}: TensorFlow gives shape {value.shape}, not {result.shape}", "report the model"
                )
        return dict(zip(fetches, values, strict=True))

    def close(self) -> None:
        """Let go of the weights."""
        self._functions.clear()
        self._weights.clear()
        gc.collect()

    def _function(
        self, fetches: tuple[str, ...], replaced: tuple[Tensor, ...]
    ) -> tf.types.experimental.ConcreteFunction:
        import tensorflow as tf

        given = {f"input_{number}": tensor for number, tensor in enumerate(self._graph.frozen.inputs)}
        given |= {f"replaced_{number}": tensor for number, tensor in enumerate(replaced)}

        def run(**arguments: tf.Tensor) -> list[tf.Tensor]:
            fed = {given[name].name: tensor for name, tensor in arguments.items()}
            return import_graph(self._graph.graph_def, fed | self._weights | self._captures, fetches)

        specs = {name: tf.TensorSpec(tensor.shape, tensor.dtype, name) for name, tensor in given.items()}
        return trace(run, specs, self._graph.graph_def)


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """Let TensorFlow compute float32 as such within the block: on a GPU its default is TF32, which is 1,000 times coarser
    and would make right translations look wrong (seen on an H100)."""
    import tensorflow as tf

    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


def error_line(error: tf.errors.OpError) -> str:
    """What went wrong, in one line: TensorFlow puts it after the traceback of the op, and before the op's place."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip() and not line.strip().startswith("[[")]
    return str(lines[-1] if len(lines) > 1 and lines[0].startswith("Graph execution error") else lines[0])
