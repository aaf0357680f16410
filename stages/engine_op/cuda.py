"""The few calls of the CUDA driver that running engines needs, with its errors as exceptions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from stages.engine_op.reasons import CannotRun, Reason


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A graph with copies around it, executable; `copies` are the nodes of its copies in and out, 0 where there is none.
    The nodes are `graph`'s, which lives as long as its executables."""

    graph: int
    executables: tuple[int, ...]
    copies: tuple[int, ...]


class Cuda:
    """The CUDA driver, bound to one device's primary context, which TensorFlow uses too.

    Raises:
        CannotRun: cuda-python is not installed, or there is no such device.
    """

    def __init__(self, device: int) -> None:
        try:
            from cuda.bindings import driver
        except ImportError as error:
            raise CannotRun(Reason.NO_BACKEND, f"cuda-python: {error}") from error
        self._driver: ModuleType = driver
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", device)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    def enter(self) -> None:
        """Make the device's context the calling thread's."""
        self._call("cuCtxSetCurrent", self._context)

    def name(self) -> str:
        """The device's name, as `NVIDIA H100 80GB HBM3`."""
        raw: bytes = self._call("cuDeviceGetName", 256, self._device)
        return raw.split(b"\0")[0].decode()

    def new_stream(self) -> int:
        return int(self._call("cuStreamCreate", int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def clear(self, address: int, size: int, stream: int) -> None:
        """Set `size` bytes of device memory to zero."""
        self._call("cuMemsetD8Async", address, 0, size, stream)

    def upload(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy from host memory that may be reused at once."""
        self._call("cuMemcpyHtoDAsync", target, source, size, stream)

    def new_event(self) -> int:
        return int(self._call("cuEventCreate", int(self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)))

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        """Let what is enqueued on `stream` from now on wait for `event`."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def begin_capture(self, stream: int) -> None:
        """Thread-local: what other threads do on the device meanwhile is not forbidden."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """The captured work as a graph, to be destroyed by `destroy`."""
        return int(self._call("cuStreamEndCapture", stream))

    def instantiate(self, graph: int) -> int:
        """A graph made executable."""
        return int(self._call("cuGraphInstantiate", graph, 0))

    def with_copies(
        self, graph: int, before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]], executables: int
    ) -> Wrapped:
        """`graph` with copies to buffers `before` it and from buffers `after` it, executable so many times over.

        Args:
            before, after: address and size of each buffer; nothing is copied for size 0. The other end of each copy is to
                be set in an executable before its first launch.
        """
        outer = self._call("cuGraphCreate", 0)
        copies_in = [self._copy(outer, [], *buffer) for buffer in before]
        there = [node for node in copies_in if node is not None]
        inner = self._call("cuGraphAddChildGraphNode", outer, there, len(there), graph)
        copies_out = [self._copy(outer, [inner], *buffer) for buffer in after]
        numbers = [0 if node is None else int(node) for node in (*copies_in, *copies_out)]
        return Wrapped(int(outer), tuple(self.instantiate(outer) for _ in range(executables)), tuple(numbers))

    def _copy(self, graph: object, after: list[object], buffer: int, size: int) -> Any:
        if not size:
            return None
        copy = self._driver.CUDA_MEMCPY3D()
        copy.srcMemoryType = copy.dstMemoryType = self._driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice = copy.dstDevice = buffer
        copy.WidthInBytes, copy.Height, copy.Depth = size, 1, 1
        return self._call("cuGraphAddMemcpyNode", graph, after, len(after), copy, self._context)

    def abandon_capture(self, stream: int) -> None:
        """End a capture that failed."""
        self._driver.cuStreamEndCapture(stream)

    def destroy(self, graph: int) -> None:
        self._call("cuGraphDestroy", graph)

    def destroy_executable(self, executable: int) -> None:
        self._call("cuGraphExecDestroy", executable)

    @property
    def context(self) -> int:
        """The primary context's handle."""
        return int(self._context)

    def _call(self, function: str, *arguments: object) -> Any:
        error, *results = getattr(self._driver, function)(*arguments)
        if int(error) != 0:
            _, words = self._driver.cuGetErrorString(error)
            text = words.decode() if words else str(error)
            reason = Reason.OUT_OF_MEMORY if "memory" in text else Reason.ENGINE_FAILED
            raise CannotRun(Reason.NO_GPU if function in ("cuInit", "cuDeviceGet") else reason, f"{function}: {text}")
        return results[0] if results else None


class DeviceMemory:
    """TensorFlow's own memory on one device: its limits (growth, fraction) hold for engines too.

    Args:
        library: the op's shared library, loaded with ctypes.
        device: CUDA ordinal.
    """

    def __init__(self, library: ctypes.CDLL, device: int) -> None:
        self._library = library
        self._device = device
        library.GraftAllocate.argtypes = (ctypes.c_int32, ctypes.c_int64)
        library.GraftAllocate.restype = ctypes.c_void_p
        library.GraftFree.argtypes = (ctypes.c_int32, ctypes.c_void_p)
        library.GraftFree.restype = None

    def allocate(self, size: int) -> int:
        """`size` bytes, aligned to 256.

        Raises:
            CannotRun: TensorFlow has none left.
        """
        address = self._library.GraftAllocate(self._device, max(size, 1))
        if not address:
            raise CannotRun(
                Reason.OUT_OF_MEMORY, f"TensorFlow has no {size / 2**20:.0f} MiB left on GPU {self._device}"
            )
        return int(address)

    def free(self, address: int) -> None:
        self._library.GraftFree(self._device, address)


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as TensorFlow uses it: its driver, TensorFlow's memory and stream there, and the op's shared library."""

    cuda: Cuda
    memory: DeviceMemory
    library: ctypes.CDLL
    stream: int
