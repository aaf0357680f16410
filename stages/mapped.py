"""Large constants as TensorFlow tensors that are not copied."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.compare import Array

_ALIGNMENT = 64
"""TensorFlow's, in bytes."""


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


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Array:
    """An array, not filled, whose memory a tensor can share."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def is_aligned(array: Array) -> bool:
    """Whether a tensor can share an array's memory."""
    return array.flags.c_contiguous and array.ctypes.data % _ALIGNMENT == 0
