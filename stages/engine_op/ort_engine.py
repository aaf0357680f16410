"""Engines that ONNX Runtime runs on the CPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.engine_op.dtypes import BY_ORT, DType
from stages.engine_op.engines import Allocate, TensorView
from stages.engine_op.reasons import CannotRun, Reason

if TYPE_CHECKING:
    import onnxruntime

_SHAPES_REMEMBERED = 256

Shapes = tuple[tuple[int, ...], ...]


class OrtEngine:
    """An `onnxruntime.InferenceSession` that reads TensorFlow's buffers in place.

    It writes in place too, once the shapes of its outputs are known: the first call with some input shapes lets ONNX
    Runtime allocate, and its outputs are copied. Where an output's shape depends on values, ONNX Runtime refuses a
    buffer of another shape; that call is repeated, and from then on outputs are copied.
    """

    def __init__(self, plan: str | bytes) -> None:
        """Load a model from a path (external data beside it) or from its bytes.

        Raises:
            CannotRun: ONNX Runtime is not installed, or refuses the model.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise CannotRun(Reason.NO_BACKEND, f"onnxruntime: {error}") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its errors come as exceptions, and are logged as fallbacks
        try:
            self._session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CannotRun(Reason.PLAN_REFUSED, str(error)) from error
        self._binding = onnxruntime.IOBinding
        self.inputs = {port.name: self._dtype(port.name, port.type) for port in self._session.get_inputs()}
        self.outputs = {port.name: self._dtype(port.name, port.type) for port in self._session.get_outputs()}
        self._output_shapes: dict[Shapes, Shapes] = {}
        self._in_place = True

    @staticmethod
    def _dtype(name: str, ort: str) -> DType:
        try:
            return BY_ORT[ort]
        except KeyError:
            raise CannotRun(Reason.MISMATCH, f"{name} is a {ort}, which no binding can be") from None

    def run(self, inputs: dict[str, TensorView], outputs: Sequence[str], allocate: Allocate, stream: int) -> int:
        """See `Engine.run`; a CPU has neither streams nor graphs."""
        shapes = tuple(inputs[name].shape for name in self.inputs)
        known = self._output_shapes.get(shapes) if self._in_place else None
        if known is not None and self._run_in_place(self._bind(inputs), outputs, known, allocate):
            return 0
        found = self._run_and_copy(self._bind(inputs), outputs, allocate)
        if known is not None:
            self._in_place = False
        elif len(self._output_shapes) < _SHAPES_REMEMBERED:
            self._output_shapes[shapes] = found
        return 0

    def close(self) -> None:
        """See `Engine.close`; the session goes with the last reference to it."""

    def _bind(self, inputs: dict[str, TensorView]) -> onnxruntime.IOBinding:
        binding = self._binding(self._session)
        for name, dtype in self.inputs.items():
            view = inputs[name]
            if view.dtype != dtype:
                raise CannotRun(Reason.MISMATCH, f"{name} is {view.dtype.name}, the plan's {dtype.name}")
            binding.bind_input(name, "cpu", 0, dtype.onnx, view.shape, view.address)
        return binding

    def _run_in_place(
        self, binding: onnxruntime.IOBinding, outputs: Sequence[str], shapes: Shapes, allocate: Allocate
    ) -> bool:
        for index, (name, shape) in enumerate(zip(outputs, shapes, strict=True)):
            dtype = self.outputs[name]
            binding.bind_output(name, "cpu", 0, dtype.onnx, shape, allocate(index, dtype, shape))
        try:
            self._session.run_with_iobinding(binding)
        except Exception:  # noqa: BLE001  ONNX Runtime has no class for it; the copying run repeats any other failure
            return False
        return True

    def _run_and_copy(self, binding: onnxruntime.IOBinding, outputs: Sequence[str], allocate: Allocate) -> Shapes:
        for name in outputs:
            binding.bind_output(name)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise CannotRun(Reason.ENGINE_FAILED, str(error)) from error
        shapes = []
        for index, (name, value) in enumerate(zip(outputs, binding.get_outputs(), strict=True)):
            dtype, shape = self.outputs[name], tuple(value.shape())
            address = allocate(index, dtype, shape)
            if size := dtype.bytes * math.prod(shape):
                ctypes.memmove(address, value.data_ptr(), size)
            shapes.append(shape)
        return tuple(shapes)
