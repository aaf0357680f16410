"""What processor and GPUs this machine has; the GPUs are asked of the driver itself."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from pathlib import Path

_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
"""CUdevice_attribute: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR (cuda.h)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A CUDA device; `capability` is its compute capability, as `8.6`."""

    name: str
    capability: str


def cpu_name() -> str:
    """The processor's model, or its architecture where Linux doesn't say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def gpu_count() -> int:
    """How many CUDA devices this process may use; 0 where there is no driver. Heeds CUDA_VISIBLE_DEVICES."""
    cuda = _driver()
    count = ctypes.c_int()
    return count.value if cuda is not None and cuda.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def gpus() -> tuple[Gpu, ...]:
    """The CUDA devices that this process may use."""
    cuda = _driver()
    found: list[Gpu] = []
    if cuda is None:
        return ()
    for number in range(gpu_count()):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), number)
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device)
        found.append(Gpu(name.value.decode(), f"{major.value}.{minor.value}"))
    return tuple(found)


def driver_version() -> str:
    """The newest CUDA version that the driver supports, as `13.0`; empty where there is no driver."""
    cuda = _driver()
    version = ctypes.c_int()
    if cuda is None or cuda.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return ""
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _driver() -> ctypes.CDLL | None:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    return cuda if cuda.cuInit(0) == 0 else None
