"""Making a loaded model ready before the first request, and saying how long that takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.engine_op.trt_graphs import wait_for_captures

if TYPE_CHECKING:
    import tensorflow as tf

_WARM_CALLS = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from a call until its results are in host memory: the first one, with all that is done once (loading plans,
    finishing kernels for every profile), and the median of the calls when all of that is done."""

    first_seconds: float
    warm_seconds: float


def warmup(function: Callable[..., Any], examples: Sequence[Mapping[str, Any]] | None = None) -> list[Latency]:
    """Call a loaded signature until nothing is left to be done at the next call of these sizes.

        model = tf.saved_model.load("out/saved_model")
        warmup(model.signatures["serving_default"], [{"image": np.zeros((n, 224, 224, 3), "float32")} for n in (1, 8)])

    The first call loads the region's plans, and runs every profile of theirs once. The second orders CUDA graphs for its
    sizes, which are waited for here. On a CPU only the first is slower.

    Args:
        function: a signature of a stitched model, or a function that calls one.
        examples: arguments by name, one for each size that requests will have; None: zeros, empty strings and False, open
            axes 1, which needs a signature.

    Returns:
        One latency for each example.
    """
    return [_latency(function, example) for example in examples or [_zeros(function)]]


def _latency(function: Callable[..., Any], example: Mapping[str, Any]) -> Latency:
    import tensorflow as tf

    tensors = {name: tf.convert_to_tensor(value) for name, value in example.items()}
    first, _ = _seconds(function, tensors), _seconds(function, tensors)
    wait_for_captures()
    return Latency(first, statistics.median(_seconds(function, tensors) for _ in range(_WARM_CALLS)))


def _seconds(function: Callable[..., Any], tensors: Mapping[str, tf.Tensor]) -> float:
    import tensorflow as tf

    start = time.perf_counter()
    for result in tf.nest.flatten(function(**tensors)):
        result.numpy()
    return time.perf_counter() - start


def _zeros(function: Any) -> dict[str, tf.Tensor]:
    import tensorflow as tf

    return {
        name: tf.zeros([1 if axis is None else axis for axis in spec.shape], spec.dtype)
        for name, spec in function.structured_input_signature[1].items()
    }
