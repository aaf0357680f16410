"""Engines captured as CUDA graphs, over buffers of their own at fixed shapes."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.engine_op import abi
from stages.engine_op.cuda import Device, Wrapped
from stages.engine_op.dtypes import DType
from stages.engine_op.reasons import CannotRun, Reason
from stages.engine_op.trt_runtime import LoadedEngine, save_kernels

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)

Shapes = tuple[tuple[int, ...], ...]

_CAPTURE_AT = 2
"""The call with the same shapes at which a graph is captured: shapes that come once are not worth it."""
_CAPTURE_AGAIN_AT = 100
"""Likewise after a graph had to make room for another: where more shapes come than there is room for, calls must not
spend their time on captures."""
_SHAPES_COUNTED = 4096
_EXECUTABLES = 4
"""Of each graph: each is launched as it is for the addresses that it was launched for before."""
_BUFFERS_MIB = int(os.environ.get("GRAFTRT_BUFFERS_MIB", "2048"))
"""Most memory, in MiB, that the buffers and scratch memory of one engine's captured graphs may take; 0 turns graphs off."""

_threads = ThreadPoolExecutor(1, "graftrt-capture")
"""TensorRT for RTX compiles kernels for a graph's shapes: seconds, in which calls go on being enqueued. The interpreter
waits for it at its exit."""
_pending: set[Future[None]] = set()


def wait_for_captures(timeout_seconds: float | None = None) -> None:
    """Return when every capture that was ordered has ended: calls of those shapes are graphs from now on."""
    wait(list(_pending), timeout_seconds)


def _ended(order: Future[None]) -> None:
    _pending.discard(order)
    error = order.exception()
    if error is not None:
        log.error("a CUDA graph can't be captured", exc_info=error)


@dataclass(slots=True)
class _Captured:
    """A graph over its own buffers; `record` is the kernel's record of it."""

    context: tensorrt.IExecutionContext
    graph: Wrapped
    buffers: list[int]
    size: int
    record: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """What a graph is captured for.

    Attributes:
        shapes: of the engine's inputs, in its order.
        positions: of these inputs among the op's, and `on_host`: whether they lie in host memory.
        outputs: the engine's bindings, in the op's order.
    """

    shapes: Shapes
    profile: int
    positions: tuple[int, ...]
    on_host: tuple[bool, ...]
    outputs: tuple[str, ...]


class Graphs:
    """The captured graphs of one engine, made on the stream `private`. Thread-safe."""

    def __init__(
        self,
        loaded: LoadedEngine,
        device: Device,
        private: int,
        inputs: Mapping[str, DType],
        outputs: Mapping[str, DType],
        *,
        enqueueing: threading.Lock,
    ) -> None:
        self._loaded = loaded
        self._cuda, self._memory, self._library = device.cuda, device.memory, device.library
        self._stream = device.stream
        self._inputs, self._outputs = inputs, outputs
        self._private = private
        self._enqueueing = enqueueing
        self._lock = threading.Lock()
        self._capturing = threading.Lock()
        self._closed = False
        self._calls: dict[Shapes, int] = {}
        self._captured: dict[Shapes, _Captured] = {}
        self._ordered: set[Shapes] = set()
        """Captures that run, or failed: no other call orders them."""

    def record(self, call: Call) -> int:
        """The kernel's record of the graph for these shapes, 0 if there is none. Counts a call, and may order a capture."""
        shapes = call.shapes
        with self._lock:
            if shapes in self._captured:
                return self._captured[shapes].record
            if len(self._calls) > _SHAPES_COUNTED:
                self._calls.clear()
            calls = self._calls[shapes] = self._calls.get(shapes, 0) + 1
            if calls < _CAPTURE_AT or shapes in self._ordered or not _BUFFERS_MIB:
                return 0
            self._ordered.add(shapes)
        try:
            order = _threads.submit(self._capture, call)
        except RuntimeError:  # the interpreter is exiting
            return 0
        _pending.add(order)
        order.add_done_callback(_ended)
        return 0

    def close(self) -> None:
        """Free everything; the kernel launches no graph of this engine any more."""
        with self._capturing:
            self._closed = True
        for captured in self._captured.values():
            self._drop(captured)
        self._captured = {}

    def bind_buffers(
        self, context: tensorrt.IExecutionContext, shapes: Shapes, outputs: Sequence[str], buffers: list[int]
    ) -> tuple[list[int], list[tuple[int, ...]]]:
        """Give a context buffers of its own for its inputs (zeroed) and outputs; their sizes and the outputs' shapes."""
        for name, shape in zip(self._inputs, shapes, strict=True):
            context.set_input_shape(name, shape)
        results = [tuple(context.get_tensor_shape(name)) for name in outputs]
        if any(axis < 0 for shape in results for axis in shape):
            raise CannotRun(Reason.ENGINE_FAILED, "the size of a result depends on values")
        ports = [(name, self._inputs[name], shape) for name, shape in zip(self._inputs, shapes, strict=True)]
        ports += [(name, self._outputs[name], shape) for name, shape in zip(outputs, results, strict=True)]
        sizes = [dtype.bytes * math.prod(shape) for _, dtype, shape in ports]
        for (name, _, _), size in zip(ports, sizes, strict=True):
            buffers.append(self._memory.allocate(size))
            context.set_tensor_address(name, buffers[-1])
        # Memory that TensorFlow has just handed out may still be read by work on its stream.
        self._cuda.synchronize(self._stream)
        for address, size in zip(buffers, sizes[: len(self._inputs)], strict=False):
            self._cuda.clear(address, max(size, 1), self._private)
        return sizes, results

    def _capture(self, call: Call) -> None:
        """Capture the engine at a call's shapes. Where that fails calls are enqueued as before: it costs nothing but speed."""
        with self._capturing:
            if self._closed:
                return
            start = time.perf_counter()
            buffers: list[int] = []
            try:
                self._cuda.enter()
                captured = self._make(call, buffers)
            except CannotRun as error:
                log.info("no CUDA graph for shapes %s: %s", call.shapes, error)
                for address in buffers:
                    self._memory.free(address)
                return
            with self._lock:
                self._captured[call.shapes] = captured
                self._ordered.discard(call.shapes)
            log.info("captured a CUDA graph for shapes %s in %.2f s", call.shapes, time.perf_counter() - start)
            save_kernels(self._loaded)

    def _make(self, call: Call, buffers: list[int]) -> _Captured:
        scratch = self._loaded.scratch_bytes(call.profile)
        context = self._loaded.new_context(call.profile, self._private)
        self._cuda.synchronize(self._private)
        sizes, results = self.bind_buffers(context, call.shapes, call.outputs, buffers)
        self._make_room(sum(sizes) + scratch)
        with self._enqueueing:
            engine = self._record(context)
        ends = list(zip(buffers, sizes, strict=False))
        split = len(self._inputs)
        before = [
            (buffer, 0 if host else size) for (buffer, size), host in zip(ends[:split], call.on_host, strict=True)
        ]
        try:
            graph = self._cuda.with_copies(engine, before, ends[split:], _EXECUTABLES)
        finally:
            self._cuda.destroy(engine)
        ports = [
            abi.graph_port(index, shape, size, dtype, buffer=buffer, copy=copy)
            for index, shape, dtype, (buffer, size), copy in zip(
                (*call.positions, *range(len(call.outputs))),
                (*call.shapes, *results),
                (*self._inputs.values(), *(self._outputs[name] for name in call.outputs)),
                ends,
                graph.copies,
                strict=True,
            )
        ]
        record = abi.create_graph(
            self._library, ports, split, executables=graph.executables, context=self._cuda.context
        )
        return _Captured(context, graph, buffers, sum(sizes) + scratch, record)

    def _record(self, context: tensorrt.IExecutionContext) -> int:
        """The engine's work as a CUDA graph; it runs once before, to do what is only done at first."""
        if not context.execute_async_v3(self._private):
            raise CannotRun(Reason.ENGINE_FAILED, self._loaded.words())
        self._cuda.synchronize(self._private)
        if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self._private):
            raise CannotRun(Reason.ENGINE_FAILED, "TensorRT says that this context can't be captured")
        self._cuda.begin_capture(self._private)
        try:
            enqueued = context.execute_async_v3(self._private)
        except BaseException:
            self._cuda.abandon_capture(self._private)
            raise
        graph = self._cuda.end_capture(self._private)
        if not enqueued:
            self._cuda.destroy(graph)
            raise CannotRun(Reason.ENGINE_FAILED, self._loaded.words())
        return graph

    def _make_room(self, size: int) -> None:
        """Drop the graphs captured longest ago until one with `size` bytes of buffers fits."""
        limit = _BUFFERS_MIB << 20
        if size > limit:
            raise CannotRun(Reason.OUT_OF_MEMORY, f"its buffers take {size >> 20} MiB of {_BUFFERS_MIB}")
        while True:
            with self._lock:
                taken = sum(captured.size for captured in self._captured.values())
                if taken + size <= limit or not self._captured:
                    return
                shapes = next(iter(self._captured))
                oldest = self._captured.pop(shapes)
                self._calls[shapes] = _CAPTURE_AT - _CAPTURE_AGAIN_AT
            self._drop(oldest)

    def _drop(self, captured: _Captured) -> None:
        self._library.GraftGraphDrop(captured.record)
        for executable in captured.graph.executables:
            self._cuda.destroy_executable(executable)
        self._cuda.destroy(captured.graph.graph)
        for address in captured.buffers:
            self._memory.free(address)
