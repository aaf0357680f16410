"""Large constants as TensorFlow tensors that are not copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.compare import Array


def mapped_constant(value: Array) -> tf.Tensor:
    """A tensor of an array that nobody will change, such as a mapped file: on a CPU it shares the array's memory.

    `tf.constant` copies the array first, lest somebody change it. TensorFlow copies it here only where the memory is
    not aligned as it wants (`.npy` files are) or the tensor goes to a GPU.
    """
    from tensorflow.python.eager import context
    from tensorflow.python.framework import ops

    here = context.context()
    here.ensure_initialized()
    return ops.EagerTensor(value, here.device_name, None)
