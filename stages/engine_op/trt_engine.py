"""Engines that TensorRT runs on a GPU, with TensorFlow's stream and memory.

A call is enqueued on TensorFlow's stream as it is. The second call with the same shapes also orders a capture: a thread
of its own, so that no call waits, captures the engine as a CUDA graph over buffers of its own. From then on the kernel
launches that graph by itself, without Python (`graphs.h`).

Calls of one engine are enqueued one after the other: TensorRT for RTX 1.6 crashed where two contexts of an engine were
enqueued at the same time. TensorFlow has one stream for a device, where they would run in that order anyway.
"""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.engine_op.cuda import Cuda, Device, DeviceMemory
from stages.engine_op.dtypes import DType
from stages.engine_op.engines import Allocate, TensorView
from stages.engine_op.interface import Plan
from stages.engine_op.reasons import CannotRun, Reason
from stages.engine_op.trt_graphs import Call, Graphs, Shapes
from stages.engine_op.trt_runtime import load_engine, save_kernels

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)


class TensorRtEngine:
    """A deserialized plan on one device.

    Args:
        plan: its description; `data` its bytes.
        device: CUDA ordinal.
        stream: TensorFlow's stream; memory that TensorFlow hands out may still be in use by work enqueued there.
        library: the op's shared library.

    Raises:
        CannotRun: no GPU, library missing or of another version, plan refused, out of memory.
    """

    def __init__(self, plan: Plan, data: bytes | mmap.mmap, device: int, stream: int, library: ctypes.CDLL) -> None:
        self._cuda = Cuda(device)
        self._cuda.enter()
        self._memory = DeviceMemory(library, device)
        place = Device(self._cuda, self._memory, library, stream)
        self._loaded = load_engine(plan, data, self._cuda, self._memory, stream)
        self._engine = self._loaded.engine
        self._private = self._cuda.new_stream()
        self._lock = threading.Lock()
        self._contexts: dict[int, tensorrt.IExecutionContext] = {}
        self._scratch = 0
        self._scratch_bytes = 0
        self._enqueued = self._cuda.new_event()
        self._last_stream = 0
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        module = self._loaded.module
        self.inputs: dict[str, DType] = {}
        self.outputs: dict[str, DType] = {}
        for name in names:
            is_input = self._engine.get_tensor_mode(name) == module.TensorIOMode.INPUT
            if self._engine.get_tensor_location(name) != module.TensorLocation.DEVICE:
                raise CannotRun(Reason.MISMATCH, f"{name} is a shape tensor in host memory")
            (self.inputs if is_input else self.outputs)[name] = self._loaded.dtype(name)
        self._profiles = [
            {name: self._engine.get_tensor_profile_shape(name, profile) for name in self.inputs}
            for profile in range(self._engine.num_optimization_profiles)
        ]
        self._graphs = Graphs(self._loaded, place, self._private, self.inputs, self.outputs, enqueueing=self._lock)
        start = time.perf_counter()
        self._warm_up(stream)
        log.info("%s engine warmed up in %.1f s", plan.backend, time.perf_counter() - start)
        save_kernels(self._loaded)

    def run(self, inputs: dict[str, TensorView], outputs: Sequence[str], allocate: Allocate, stream: int = 0) -> int:
        """See `Engine.run`. Returns the record of a captured graph for these shapes, 0 if there is none yet."""
        self._cuda.enter()
        for name, dtype in self.inputs.items():
            if inputs[name].dtype != dtype:
                raise CannotRun(Reason.MISMATCH, f"{name} is {inputs[name].dtype.name}, the plan's {dtype.name}")
        shapes = tuple(inputs[name].shape for name in self.inputs)
        profile = self._profile(shapes)
        self._enqueue(inputs, outputs, allocate, stream, profile)
        views = [inputs[name] for name in self.inputs]
        places = tuple(view.position for view in views), tuple(view.on_host for view in views)
        return self._graphs.record(Call(shapes, profile, *places, tuple(outputs)))

    def close(self) -> None:
        """Free everything; the kernel launches no graph of this engine any more once its record is dropped."""
        self._graphs.close()
        self._contexts = {}
        self._memory.free(self._scratch)
        self._loaded.close()

    def _enqueue(
        self, inputs: dict[str, TensorView], outputs: Sequence[str], allocate: Allocate, stream: int, profile: int
    ) -> None:
        uploads: list[int] = []
        try:
            with self._lock:
                context = self._context(profile)
                for name in self.inputs:
                    view = inputs[name]
                    address = view.address
                    if view.on_host:
                        size = view.dtype.bytes * math.prod(view.shape)
                        address = self._memory.allocate(size)
                        uploads.append(address)
                        self._cuda.upload(address, view.address, size, stream)
                    if not context.set_input_shape(name, view.shape):
                        raise CannotRun(Reason.ENGINE_FAILED, self._loaded.words() or f"{name} can't be {view.shape}")
                    context.set_tensor_address(name, address)
                self._give_scratch(context)
                for index, name in enumerate(outputs):
                    shape = tuple(context.get_tensor_shape(name))
                    if any(axis < 0 for axis in shape):
                        raise CannotRun(Reason.ENGINE_FAILED, f"the size of {name} depends on values")
                    context.set_tensor_address(name, allocate(index, self.outputs[name], shape))
                self._execute(context, stream)
        finally:
            # TensorFlow's allocator orders reuse by its stream, on which the engine was enqueued.
            for address in uploads:
                self._memory.free(address)

    def _execute(self, context: tensorrt.IExecutionContext, stream: int) -> None:
        """Enqueue; what another stream still runs with the same scratch memory ends before. The lock is held."""
        if self._last_stream not in (0, stream):
            self._cuda.wait(stream, self._enqueued)
        if not context.execute_async_v3(stream):
            raise CannotRun(Reason.ENGINE_FAILED, self._loaded.words() or "enqueueing failed")
        self._cuda.record(self._enqueued, stream)
        self._last_stream = stream

    def _context(self, profile: int) -> tensorrt.IExecutionContext:
        """The profile's context, made at its first use. The lock is held."""
        context = self._contexts.get(profile)
        if context is None:
            context = self._contexts[profile] = self._loaded.new_context(profile, self._private)
            self._cuda.synchronize(self._private)
        return context

    def _give_scratch(self, context: tensorrt.IExecutionContext) -> None:
        """All contexts share one scratch memory, which grows with the shapes that come. The lock is held."""
        size = max(context.update_device_memory_size_for_shapes(), 1)
        if size > self._scratch_bytes:
            address = self._memory.allocate(size)
            # Work that still uses the old one was enqueued on TensorFlow's stream, which orders its reuse.
            self._memory.free(self._scratch)
            self._scratch, self._scratch_bytes = address, size
        context.set_device_memory(self._scratch, self._scratch_bytes)

    def _profile(self, shapes: Shapes) -> int:
        for number, profile in enumerate(self._profiles):
            fits = (
                len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
                for shape, (low, _, high) in zip(shapes, profile.values(), strict=True)
            )
            if all(fits):
                return number
        raise CannotRun(Reason.PROFILE, ", ".join(map(str, shapes)))

    def _warm_up(self, stream: int) -> None:
        """Run every profile once at its usual sizes: TensorRT for RTX finishes kernels at their first use."""
        for number, profile in enumerate(self._profiles):
            shapes = tuple(tuple(usual) for _, usual, _ in profile.values())
            buffers: list[int] = []
            try:
                with self._lock:
                    context = self._context(number)
                    self._graphs.bind_buffers(context, shapes, tuple(self.outputs), buffers)
                    self._give_scratch(context)
                    # TensorFlow's stream may still use what it has handed out, and this is another.
                    self._cuda.synchronize(stream)
                    self._execute(context, self._private)
                self._cuda.synchronize(self._private)
            except CannotRun as error:
                log.info("an engine was not warmed up: %s", error)
            finally:
                for address in buffers:
                    self._memory.free(address)
