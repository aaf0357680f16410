"""The structures of `runtime_abi.h` for ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from stages.engine_op.dtypes import DType

ABI_VERSION = 3
REASON_SIZE = 64
DETAIL_SIZE = 2048


class Bytes(ctypes.Structure):
    """`GraftBytes`."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64))

    def value(self) -> bytes:
        return ctypes.string_at(self.data, self.size) if self.size else b""


class Tensor(ctypes.Structure):
    """`GraftTensor`."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("on_host", ctypes.c_int32),
    )


class Failure(ctypes.Structure):
    """`GraftFailure`."""

    _fields_ = (("reason", ctypes.c_char * REASON_SIZE), ("detail", ctypes.c_char * DETAIL_SIZE))

    def fill(self, reason: str, detail: str) -> None:
        """Store both, cut to what fits with the terminating zero byte."""
        self.reason = reason.encode()[: REASON_SIZE - 1]
        self.detail = detail.encode(errors="replace")[: DETAIL_SIZE - 1]


class OpenRequest(ctypes.Structure):
    """`GraftOpenRequest`."""

    _fields_ = (
        ("interface_json", Bytes),
        ("device", Bytes),
        ("plans", ctypes.POINTER(Bytes)),
        ("num_plans", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
    )


class GraphPort(ctypes.Structure):
    """`GraftGraphPort`."""

    _fields_ = (
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("buffer", ctypes.c_uint64),
        ("copy", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("index", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


# PYFUNCTYPE keeps the interpreter's lock during the call: giving it up for an allocation means waiting for it again,
# up to 5 ms while another thread computes.
AllocateOutput = ctypes.PYFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_int64)
)


class RunRequest(ctypes.Structure):
    """`GraftRunRequest`."""

    _fields_ = (
        ("engines", ctypes.c_int64),
        ("inputs", ctypes.POINTER(Tensor)),
        ("num_inputs", ctypes.c_int32),
        ("num_outputs", ctypes.c_int32),
        ("stream", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("allocate_output", AllocateOutput),
    )


Open = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.POINTER(OpenRequest), ctypes.POINTER(Failure))
Run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(RunRequest), ctypes.POINTER(Failure))
Close = ctypes.CFUNCTYPE(None, ctypes.c_int64)


class Runtime(ctypes.Structure):
    """`GraftRuntime`, the table of functions that the kernel calls."""

    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("open", Open),
        ("run", Run),
        ("close", Close),
    )


def graph_port(index: int, shape: tuple[int, ...], size: int, dtype: DType, *, buffer: int, copy: int) -> GraphPort:
    """One port of a captured graph; `size` in bytes, `copy` the node that copies it or 0."""
    dims = (ctypes.c_int64 * len(shape))(*shape)
    return GraphPort(
        ctypes.cast(dims, ctypes.POINTER(ctypes.c_int64)), buffer, copy, size, len(shape), index, dtype.tensorflow
    )


def create_graph(
    library: ctypes.CDLL, ports: list[GraphPort], inputs: int, *, executables: Sequence[int], context: int
) -> int:
    """Tell the kernel of a captured graph; its record's number. `ports` are `inputs` inputs, then the outputs."""
    library.GraftGraphCreate.restype = ctypes.c_int64
    library.GraftGraphCreate.argtypes = (
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int32,
        ctypes.c_void_p,
    )
    array = (GraphPort * len(ports))(*ports)
    handles = (ctypes.c_void_p * len(executables))(*executables)
    outputs = len(ports) - inputs
    return int(library.GraftGraphCreate(array, inputs, outputs, handles, len(executables), context))
