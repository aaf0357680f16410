"""Loads the op into TensorFlow, and what Python sees of it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn, TypedDict, cast

from stages.engine_op.compile import compiled_library
from stages.engine_op.interface import FORMAT_VERSION, Interface
from stages.errors import EngineOpError

if TYPE_CHECKING:
    from types import ModuleType

    import tensorflow as tf

_DRAIN_SECONDS = 60.0

_lock = threading.Lock()
_loaded: tuple[ModuleType, ctypes.CDLL] | None = None


class RegionStats(TypedDict):
    """How often a region ran in an engine, and how often not, by reason (see `reasons.py`)."""

    engine_calls: int
    fallbacks: dict[str, int]


def load() -> None:
    """Make TensorFlow know EngineCall, so that stitched models load and run. Idempotent and thread-safe.

    Raises:
        EngineOpError: the op can't be compiled, or this TensorFlow refuses it.
    """
    _library()


def stats() -> dict[str, RegionStats]:
    """What has run since the process began or `reset_stats`, by region; a region that has not run is absent."""
    library = _library()[1]
    text = library.GraftStats()
    try:
        return cast("dict[str, RegionStats]", json.loads(ctypes.string_at(text)))
    finally:
        library.GraftFreeString(text)


def reset_stats() -> None:
    """Set every counter to zero. What was logged once is not logged again."""
    _library()[1].GraftResetStats()


@contextlib.contextmanager
def native_only() -> Iterator[None]:
    """Within it every EngineCall of the process runs its native segment, also where its policy is to fail.

    The calls count as fallbacks with the reason `native only`.
    """
    library = _library()[1]
    library.GraftNativeOnly(1)
    try:
        yield
    finally:
        library.GraftNativeOnly(0)


def engine_call(
    device_inputs: Sequence[tf.Tensor],
    host_inputs: Sequence[tf.Tensor],
    plans: Sequence[str | bytes | tf.Tensor],
    *,
    native_segment: tf.types.experimental.ConcreteFunction,
    interface: Interface,
    name: str | None = None,
) -> list[tf.Tensor]:
    """An EngineCall op; its output dtypes and shapes are the interface's.

    Args:
        device_inputs, host_inputs: together in the order of `interface.inputs`.
        plans: scalar strings in the order of `interface.plans`; paths, or the plans' bytes.
        native_segment: computes the same. It takes the inputs in that order; its captures become the op's.
    """
    import tensorflow as tf

    return list(
        _library()[0].engine_call(
            device_inputs=device_inputs,
            host_inputs=host_inputs,
            captured=native_segment.captured_inputs,
            plans=plans,
            Tout=[tf.as_dtype(port.dtype) for port in interface.outputs],
            output_shapes=[tf.TensorShape(port.shape) for port in interface.outputs],
            native_segment=native_segment,
            interface=interface.to_json(),
            format_version=FORMAT_VERSION,
            name=name,
        )
    )


def _library() -> tuple[ModuleType, ctypes.CDLL]:
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = _load()
        return _loaded


def _load() -> tuple[ModuleType, ctypes.CDLL]:
    import tensorflow as tf

    from stages.engine_op.runtime import use_library

    path = compiled_library()
    try:
        module = tf.load_op_library(str(path))
        library = ctypes.CDLL(str(path))
    except (tf.errors.OpError, OSError) as error:
        raise EngineOpError(
            f"{path}: TensorFlow can't load it: {error}", f"remove {path.parent} and try again"
        ) from error
    library.GraftUnregisterRuntime.argtypes = (ctypes.c_double,)
    library.GraftStats.restype = ctypes.c_void_p
    library.GraftFreeString.argtypes = (ctypes.c_void_p,)
    library.GraftFreeString.restype = None
    library.GraftResetStats.restype = None
    library.GraftNativeOnly.argtypes = (ctypes.c_int32,)
    library.GraftNativeOnly.restype = None
    use_library(library)
    _register(library)
    # Before the interpreter goes: after that, no thread may enter it any more.
    atexit.register(library.GraftUnregisterRuntime, _DRAIN_SECONDS)
    tf.RegisterGradient("EngineCall")(_no_gradient)
    return module, library


def _register(library: ctypes.CDLL) -> None:
    from stages.engine_op.runtime import TABLE

    if library.GraftRegisterRuntime(ctypes.byref(TABLE)) != 0:
        raise EngineOpError("another copy of GraftRT has registered its runtime", "install GraftRT once")


def _no_gradient(op: tf.Operation, *_: tf.Tensor) -> NoReturn:
    # The eager tape's stand-in for an op has attributes only, no name.
    region = Interface.from_json(op.get_attr("interface").decode()).region
    raise LookupError(
        f"EngineCall has no gradient, and {region} is one: engines only run forwards. Train the original model instead"
    )
