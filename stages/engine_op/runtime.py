"""The functions that the kernel calls: they open, run and close sets of engines.

Nothing may escape from them: an exception in a ctypes callback is only printed, and the kernel would go on.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
from typing import Any

from stages.engine_op import abi
from stages.engine_op.dtypes import BY_TENSORFLOW, DType
from stages.engine_op.engine_set import EngineSet
from stages.engine_op.engines import TensorView
from stages.engine_op.interface import Interface
from stages.engine_op.reasons import CannotRun, Reason
from stages.engine_op.registry import Registry

log = logging.getLogger(__name__)

registry = Registry()
_sets: dict[int, EngineSet] = {}
_handles = itertools.count(1)
_library: ctypes.CDLL | None = None


def _open(request: Any, failure: Any) -> int:
    try:
        asked = request.contents
        try:
            interface = Interface.from_json(asked.interface_json.value().decode())
        except (ValueError, KeyError, TypeError) as error:
            raise CannotRun(Reason.FORMAT, str(error)) from error
        sources = [asked.plans[i].value() for i in range(asked.num_plans)]
        device = asked.device.value().decode()
        engines = EngineSet(interface, sources, device, registry, stream=asked.stream or 0, library=_library)
        handle = next(_handles)
        _sets[handle] = engines
        return handle
    except CannotRun as refusal:
        failure.contents.fill(refusal.reason.value, refusal.detail)
    except Exception as error:  # the kernel must get an answer
        log.exception("an engine can't be opened")
        failure.contents.fill(Reason.ENGINE_FAILED.value, repr(error))
    return 0


def _run(request: Any, failure: Any) -> int:
    try:
        call = request.contents
        inputs = [_view(call.inputs[i], i) for i in range(call.num_inputs)]
        graph = _sets[call.engines].run(inputs, _Allocator(call), call.stream or 0)
        if graph and _library is not None:
            _library.GraftGraphInstall(ctypes.c_int64(call.engines), ctypes.c_int64(graph))
        return 0
    except CannotRun as refusal:
        failure.contents.fill(refusal.reason.value, refusal.detail)
    except Exception as error:  # the kernel must get an answer
        log.exception("an engine can't be run")
        failure.contents.fill(Reason.ENGINE_FAILED.value, repr(error))
    return 1


def _close(handle: int) -> None:
    try:
        _sets.pop(handle).close()
    except Exception:  # a kernel is going away; there is nobody to tell
        log.exception("engines can't be released")


def use_library(library: ctypes.CDLL) -> None:
    """Name the op's shared library, whose memory and graphs engines on a GPU use."""
    global _library
    _library = library


def _view(tensor: abi.Tensor, position: int) -> TensorView:
    dtype = BY_TENSORFLOW.get(tensor.dtype)
    if dtype is None:
        raise CannotRun(Reason.MISMATCH, f"engines have no dtype for TensorFlow's number {tensor.dtype}")
    return TensorView(tensor.data, dtype, tuple(tensor.dims[: tensor.rank]), position, bool(tensor.on_host))


class _Allocator:
    """See `engines.Allocate`."""

    def __init__(self, call: abi.RunRequest) -> None:
        self._call = call

    def __call__(self, index: int, dtype: DType, shape: tuple[int, ...]) -> int:
        dims = (ctypes.c_int64 * len(shape))(*shape)
        address: int | None = self._call.allocate_output(self._call.context, index, dtype.tensorflow, len(shape), dims)
        if address is None:
            raise CannotRun(Reason.ENGINE_FAILED, f"output {index} can't be a {dtype.name} of shape {shape}")
        return address


TABLE = abi.Runtime(abi.ABI_VERSION, ctypes.sizeof(abi.Runtime), abi.Open(_open), abi.Run(_run), abi.Close(_close))
"""What the kernel calls; it and its functions must live as long as they are registered."""
