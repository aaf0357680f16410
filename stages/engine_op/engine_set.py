"""The plans of one EngineCall kernel: which can run here, and which fits a call's shapes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import mmap
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.engine_op.background import Order, Profile, builder, profile_around
from stages.engine_op.engines import Allocate, Engine, TensorView
from stages.engine_op.interface import Interface, Plan
from stages.engine_op.ort_engine import OrtEngine
from stages.engine_op.reasons import CannotRun, Reason
from stages.engine_op.registry import Key, Registry
from stages.engine_op.trt_engine import TensorRtEngine
from stages.storage import sha256_file

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Candidate:
    plan: Plan
    source: bytes
    """The `plans` input: a path, or the plan itself."""


_TO_BE_BUILT = (Reason.PROFILE, Reason.VERSION, Reason.PLAN_REFUSED, Reason.PLAN_MISSING, Reason.PLAN_DAMAGED)
"""Refusals that another engine would answer."""
_BUILT_AT_MOST = 8
"""Engines built while serving, for one EngineCall."""


class EngineSet:
    """Loads plans in order of preference, the second only when a call's shapes need it. Thread-safe.

    Where the interface says so, an engine for shapes that no plan takes is built beside, and runs from when it is ready.
    """

    def __init__(
        self,
        interface: Interface,
        sources: Sequence[bytes],
        device: str,
        registry: Registry,
        *,
        stream: int = 0,
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Load the first plan that can run on `device` (`cpu` or `gpu:<ordinal>`).

        Args:
            stream, library: for a GPU, TensorFlow's stream and the op's shared library.

        Raises:
            CannotRun: none can. The reason is the first plan's that was for this device.
        """
        if len(sources) != len(interface.plans):
            raise CannotRun(Reason.MISMATCH, f"{len(sources)} plans for {len(interface.plans)} in the interface")
        self._interface = interface
        self._device = device
        self._registry = registry
        self._stream = stream
        self._library = library
        self._lock = threading.Lock()
        self._loaded: dict[Key, Engine | CannotRun] = {}
        self._built: list[_Candidate] = []
        self._ordered: set[Profile] = set()
        self._closed = False
        self._outputs = tuple(port.binding or "" for port in interface.outputs)
        self._sources = tuple(_Candidate(plan, source) for plan, source in zip(interface.plans, sources, strict=True))
        self._candidates = tuple(c for c in self._sources if c.plan.device == device.partition(":")[0])
        if not self._candidates:
            reason = Reason.NO_GPU if interface.plans and device == "cpu" else Reason.NO_PLAN
            raise CannotRun(reason, f"its plans are for {', '.join(p.backend for p in interface.plans) or 'nothing'}")
        refusals = []
        for candidate in self._candidates:
            try:
                self._engine(candidate)
            except CannotRun as refusal:
                refusals.append(refusal)
            else:
                return
        if not self._builds(refusals[0]):
            raise refusals[0]

    def run(self, inputs: Sequence[TensorView], allocate: Allocate, stream: int = 0) -> int:
        """Compute the outputs with the first plan that takes the inputs' shapes; see `Engine.run`.

        Args:
            inputs: in the interface's order.

        Raises:
            CannotRun: no plan takes these shapes, or the engine failed.
        """
        if len(inputs) != len(self._interface.inputs):
            raise CannotRun(Reason.MISMATCH, f"{len(inputs)} inputs for {len(self._interface.inputs)} in the interface")
        bound = self._bound(inputs)
        refusal: CannotRun | None = None
        for candidate in (*self._candidates, *self._built):
            if not _fits(candidate.plan, bound):
                shapes = ", ".join(f"{name} {view.shape}" for name, view in bound.items())
                refusal = refusal or CannotRun(Reason.PROFILE, shapes)
                continue
            try:
                engine = self._engine(candidate)
            except CannotRun as error:
                refusal = refusal or error
                continue
            return engine.run(bound, self._outputs, allocate, stream)
        assert refusal is not None, "an engine set has a candidate"
        if self._builds(refusal):
            self._order(inputs)
        raise refusal

    def close(self) -> None:
        """Release the engines. Nothing may run any more."""
        with self._lock:
            self._closed = True
            loaded, self._loaded = self._loaded, {}
        for key, engine in loaded.items():
            if not isinstance(engine, CannotRun):
                self._registry.release(key)

    def _bound(self, inputs: Sequence[TensorView]) -> dict[str, TensorView]:
        return {
            port.binding: view
            for port, view in zip(self._interface.inputs, inputs, strict=True)
            if port.binding is not None
        }

    def _builds(self, refusal: CannotRun) -> bool:
        return self._interface.build_at_runtime and self._device != "cpu" and refusal.reason in _TO_BE_BUILT

    def _order(self, inputs: Sequence[TensorView]) -> None:
        """Have an engine for these shapes built, unless it is on its way."""
        model = next((c for c in self._sources if c.plan.backend == "onnxruntime"), None)
        bound = self._bound(inputs)
        profiles = (profile for candidate in self._candidates for profile in candidate.plan.profiles)
        fitting = next((p for p in profiles if _fits_profile(p, bound)), None)
        profile = fitting or profile_around(self._interface, inputs)
        with self._lock:
            if model is None or profile in self._ordered or len(self._ordered) >= _BUILT_AT_MOST:
                return
            self._ordered.add(profile)
        wanted = self._candidates[0].plan
        # ONNX Runtime has no TF32: its model is the float32 one, and TF32 a matter of the builder.
        precision = "tf32" if (wanted.precision, model.plan.precision) == ("tf32", "fp32") else model.plan.precision
        read = functools.partial(_checked, model.plan, model.source, self._interface.storage)
        builder.add(Order(self._interface.region, wanted.backend, precision, read, profile, self._add))

    def _add(self, plan: Plan, file: Path) -> None:
        """Load an engine that was built, on the builder's thread, and let calls find it."""
        candidate = _Candidate(plan, str(file).encode(errors="surrogateescape"))
        key = (plan.sha256, self._device)
        try:
            engine = self._registry.acquire(key, lambda: self._load(candidate, "file"))
        except CannotRun as refusal:
            log.warning("%s: an engine built while serving can't run: %s", self._interface.region, refusal)
            return
        with self._lock:
            taken = not self._closed and key not in self._loaded
            if taken:
                self._loaded[key] = engine
                self._built = [*self._built, candidate]
        if not taken:
            self._registry.release(key)

    def _engine(self, candidate: _Candidate) -> Engine:
        key = (candidate.plan.sha256, self._device)
        engine = self._loaded.get(key)
        if engine is None:
            # Only a call that needs a plan for the first time waits here; the others have found theirs above.
            with self._lock:
                engine = self._loaded.get(key)
                if engine is None:
                    try:
                        engine = self._registry.acquire(key, lambda: self._load(candidate, self._interface.storage))
                    except CannotRun as refusal:
                        engine = refusal
                    self._loaded[key] = engine
        if isinstance(engine, CannotRun):
            raise CannotRun(engine.reason, engine.detail)
        return engine

    def _load(self, candidate: _Candidate, storage: str) -> Engine:
        plan = candidate.plan
        data = _checked(plan, candidate.source, storage)
        engine: OrtEngine | TensorRtEngine
        if plan.backend == "onnxruntime":
            assert not isinstance(data, mmap.mmap)
            engine = OrtEngine(data)
        elif plan.device == "cpu":
            raise CannotRun(Reason.NO_BACKEND, f"{plan.backend} can't run on a CPU")
        else:
            assert self._library is not None, "the kernel passes it"
            assert not isinstance(data, str)
            engine = TensorRtEngine(plan, data, int(self._device.partition(":")[2]), self._stream, self._library)
        dtypes = {port.binding: port.dtype for port in self._interface.inputs}
        for name, dtype in engine.inputs.items():
            if dtypes.get(name) != dtype.name:
                raise CannotRun(
                    Reason.MISMATCH, f"the plan wants {name} as {dtype.name}, the op has {dtypes.get(name)}"
                )
        for port in self._interface.outputs:
            found = engine.outputs.get(port.binding or "")
            if found is None or found.name != port.dtype:
                raise CannotRun(Reason.MISMATCH, f"the plan has no {port.dtype} output {port.binding}")
        return engine


def _checked(plan: Plan, source: bytes, storage: str) -> str | bytes | mmap.mmap:
    """The plan as its library takes it, after its bytes were found to be those that the interface names: a path for
    ONNX Runtime, which reads the files beside it too, a mapped file for TensorRT."""
    if storage == "embedded":
        _compare(hashlib.sha256(source).hexdigest(), plan.sha256, "embedded plan")
        return source
    path = Path(source.decode(errors="surrogateescape"))
    try:
        if plan.backend == "onnxruntime":
            _compare(sha256_file(path), plan.sha256, str(path))
            for sha256 in plan.beside:
                weights = path.with_name(f"{sha256}.weights")
                _compare(sha256_file(weights), sha256, str(weights))
            return str(path)
        with path.open("rb") as file:
            # What is checked is what is loaded, and the plan, which may be larger than memory's rest, is never copied.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        _compare(hashlib.sha256(mapped).hexdigest(), plan.sha256, str(path))
        return mapped
    except OSError as error:
        raise CannotRun(Reason.PLAN_MISSING, f"{error.filename or path}: {error.strerror}") from error
    except ValueError as error:  # an empty file can't be mapped
        raise CannotRun(Reason.PLAN_DAMAGED, f"{path}: {error}") from error


def _compare(found: str, wanted: str, where: str) -> None:
    if found != wanted:
        raise CannotRun(Reason.PLAN_DAMAGED, f"{where}: SHA-256 is {found}, not {wanted}")


def _fits(plan: Plan, inputs: Mapping[str, TensorView]) -> bool:
    """Whether one of the plan's profiles takes these shapes; a plan without profiles takes any."""
    return not plan.profiles or any(_fits_profile(profile, inputs) for profile in plan.profiles)


def _fits_profile(profile: Profile, inputs: Mapping[str, TensorView]) -> bool:
    return all(
        name in inputs
        and len(inputs[name].shape) == len(low)
        and all(a <= size <= b for a, size, b in zip(low, inputs[name].shape, high, strict=True))
        for name, low, _, high in profile
    )
