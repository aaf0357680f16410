"""TensorFlow's own answer: the frozen graph run as it is, any tensor fetched."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.artifacts import load_weight
from stages.compare import Array
from stages.errors import VerifyError
from stages.graph import Graph
from stages.sources import reopen

if TYPE_CHECKING:
    import tensorflow as tf


class Reference:
    """Runs a frozen graph in TensorFlow on the CPU or GPU that TensorFlow would choose."""

    def __init__(self, graph: Graph) -> None:
        import tensorflow as tf

        self._graph = graph
        self._weights = {
            f"{node}:0": tf.constant(load_weight(graph.frozen, weight)) for node, weight in graph.weights.items()
        }
        self._source = reopen(graph.frozen) if graph.frozen.captures else None
        self._captures = {f"{node}:0": tensor for node, tensor in self._source.captured} if self._source else {}
        self._functions: dict[tuple[str, ...], tf.types.experimental.ConcreteFunction] = {}

    def run(self, fetches: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The values of tensors of the frozen graph.

        Args:
            fetches: tensor names.
            inputs: a value for each of the graph's inputs, by tensor name.

        Raises:
            VerifyError: TensorFlow could not run the graph on these inputs.
        """
        import tensorflow as tf

        key = tuple(dict.fromkeys(fetches))
        if key not in self._functions:
            self._functions[key] = self._function(key)
        arguments = [tf.constant(inputs[tensor.name], tensor.dtype) for tensor in self._graph.frozen.inputs]
        try:
            values = self._functions[key](*arguments)
        except tf.errors.OpError as error:
            raise VerifyError(
                f"TensorFlow can't run the model on sample inputs: {error.message.splitlines()[0]}",
                "give real ones with --samples inputs.npz",
            ) from error
        return {name: np.asarray(value.numpy()) for name, value in zip(key, values, strict=True)}

    def close(self) -> None:
        """Drop TensorFlow's copies of the weights."""
        self._functions.clear()
        self._weights.clear()
        gc.collect()

    def _function(self, fetches: tuple[str, ...]) -> tf.types.experimental.ConcreteFunction:
        import tensorflow as tf

        frozen = self._graph.frozen

        def run(*arguments: tf.Tensor) -> list[tf.Tensor]:
            names = [tensor.name for tensor in frozen.inputs]
            here = tf.compat.v1.get_default_graph()
            outside = {name: here.capture(value) for name, value in (self._weights | self._captures).items()}
            available = dict(zip(names, arguments, strict=True)) | outside
            present = {f"{node.name}:0" for node in self._graph.graph_def.node}
            input_map = {name: value for name, value in available.items() if name in present}
            return list(
                tf.graph_util.import_graph_def(
                    self._graph.graph_def, input_map=input_map, return_elements=list(fetches), name=""
                )
            )

        signature = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in frozen.inputs]
        return tf.function(run, autograph=False).get_concrete_function(*signature)
