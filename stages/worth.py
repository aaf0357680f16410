"""Whether an engine pays for its boundary: TensorFlow's time for a set of ops against an engine's, both estimated.

TensorFlow launches each op by itself and moves its tensors through memory. An engine is called once; what only computes
element by element is fused into its neighbours, so that its tensors never reach memory; but every tensor on the boundary
is copied once more on its way in or out (the engine's graph runs on buffers of its own), beside being read or written.

The constants are of one H100 (TensorFlow 2.21, TensorRT for RTX 1.6): ResNet50 at batch 1 took TensorFlow 4.3 ms for 285
ops, 15 µs each; an engine call took 0.03 ms of the calling thread. Ratios matter here, not the machine: on a slower GPU
both sides grow. A measurement can take the estimate's place: `Candidates` asks any object with `saved_seconds`.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

from stages.artifacts import Shape, Tensor
from stages.graph import Graph
from stages.regions import Cut
from stages.screen import TRIVIAL
from stages.work import Work, estimate_work

OP_SECONDS = 15e-6
"""TensorFlow's time to launch an op."""
TRIVIAL_SECONDS = 3e-6
"""TensorFlow's time for an op that only renames, reshapes or computes sizes."""
CALL_SECONDS = 30e-6
"""An engine's time to be called."""
KERNEL_SECONDS = 2e-6
"""An engine's time to launch a kernel, from a CUDA graph."""
BYTES_PER_SECOND = 2e12
FLOPS_PER_SECOND = 40e12
USUAL_BATCH = 8
"""Taken for an open first axis of the model's inputs; other open axes count as 1, which is in favour of neither."""
_PASSES = 3
"""Times that a tensor on the boundary goes through memory: it is copied (a read and a write), and the engine's."""


class Worth(Protocol):
    """Something that knows what an engine saves."""

    def saved_seconds(self, boundary: Cut) -> float:
        """TensorFlow's time for a set of ops less an engine's, in seconds; negative where the engine would be slower."""


class Estimate:
    """Worth from shapes; see the module."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def saved_seconds(self, boundary: Cut) -> float:
        tensorflow, engine = self.seconds(boundary)
        return tensorflow - engine

    def seconds(self, boundary: Cut) -> tuple[float, float]:
        """TensorFlow's time and an engine's."""
        crossing = sum(_size_bytes(self._graph.tensor(*end)) for end in (*boundary.inputs, *boundary.outputs))
        tensorflow, engine = 0.0, CALL_SECONDS + _PASSES * crossing / BYTES_PER_SECOND
        for i in boundary.ops:
            node = self._graph.nodes[i]
            work = self._work[node.name]
            seconds = max(work.flops / FLOPS_PER_SECOND, work.bytes / BYTES_PER_SECOND)
            tensorflow += (TRIVIAL_SECONDS if node.op in TRIVIAL else OP_SECONDS) + seconds
            if work.flops > work.bytes:  # more than can be fused into a neighbour for nothing
                engine += KERNEL_SECONDS + seconds
        return tensorflow, engine

    @cached_property
    def _work(self) -> dict[str, Work]:
        shapes = {tensor.name: tensor.shape for tensor in self._graph.frozen.inputs}
        known = {name: _sizes(shape) for name, shape in shapes.items() if shape is not None}
        return estimate_work(self._graph, known)


def _sizes(shape: Shape) -> tuple[int, ...]:
    return tuple((1 if axis else USUAL_BATCH) if size is None else size for axis, size in enumerate(shape))


def _size_bytes(tensor: Tensor) -> int:
    import tensorflow as tf

    return math.prod(_sizes(tensor.shape or ())) * int(tf.as_dtype(tensor.dtype).size)
