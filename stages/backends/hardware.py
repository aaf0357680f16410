"""What GPUs this machine has, asked of the driver itself."""

from __future__ import annotations

import ctypes


def gpu_count() -> int:
    """How many CUDA devices this process may use; 0 where there is no driver. Heeds CUDA_VISIBLE_DEVICES."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
