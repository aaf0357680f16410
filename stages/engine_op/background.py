"""Engines built while a model serves, for sizes or versions that no plan of the model fits.

One thread builds, in a child process, one engine after the other; the calls that asked for them run natively meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import queue
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.engine_op.engines import TensorView
from stages.engine_op.interface import Interface, Plan
from stages.engine_op.reasons import CannotRun

log = logging.getLogger(__name__)

Profile = tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]
"""`(binding, minimum, usual, maximum)` for each input."""

TIME_LIMIT_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Order:
    """An engine to build.

    Attributes:
        region: for the log.
        backend: `tensorrt` or `tensorrt_rtx`.
        precision: of the engine; already written into the model, but for tf32.
        model: reads the region's ONNX model, on the builder's thread: its path, or its bytes.
        profile: the sizes that it must take.
        ready: called on the builder's thread with the plan and its file, which is removed afterwards.
    """

    region: str
    backend: str
    precision: str
    model: Callable[[], str | bytes | mmap.mmap]
    profile: Profile
    ready: Callable[[Plan, Path], None]


def profile_around(interface: Interface, inputs: Sequence[TensorView]) -> Profile:
    """The profile that a call needs: an open axis of 2^(k−1) + 1 to 2^k elements takes all of these sizes, so that few
    engines serve many sizes, and none twice."""
    entries = []
    for port, view in zip(interface.inputs, inputs, strict=True):
        if port.binding is not None:
            spans = [_span(*pair) for pair in zip(port.shape or (None,) * len(view.shape), view.shape, strict=True)]
            entries.append((port.binding, tuple(a for a, _ in spans), view.shape, tuple(b for _, b in spans)))
    return tuple(entries)


def _span(axis: int | None, size: int) -> tuple[int, int]:
    if axis is not None or size < 2:
        return size, size
    bits = (size - 1).bit_length()
    return (1 << (bits - 1)) + 1, 1 << bits


class Builder:
    """Builds one order after the other on a thread of its own, which ends with the process. Thread-safe."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = False

    def add(self, order: Order) -> None:
        """Return at once; `order.ready` is called if the engine could be built, and the log says so if not."""
        self._orders.put(order)
        with self._lock:
            if not self._started:
                threading.Thread(target=self._work, name="graftrt-build", daemon=True).start()
                self._started = True

    def _work(self) -> None:
        while True:
            order = self._orders.get()
            try:
                _build(order)
            except Exception:  # the thread serves all engines of the process
                log.exception("%s: no engine was built while serving", order.region)


def _build(order: Order) -> None:
    from stages.artifacts import ShapeRange
    from stages.backends.base import BuildOptions
    from stages.backends.isolated import Worker
    from stages.enginecache import EngineCache, compile_region
    from stages.errors import ConversionError
    from stages.storage import sha256_file

    with tempfile.TemporaryDirectory(prefix="graftrt-") as folder, contextlib.ExitStack() as stack:
        try:
            source = order.model()
        except CannotRun as refusal:
            log.warning("%s: no engine was built while serving: %s", order.region, refusal)
            return
        model = Path(source) if isinstance(source, str) else Path(folder) / "model.onnx"
        if not isinstance(source, str):
            model.write_bytes(source)
        plan = Path(folder) / f"{order.backend}.plan"
        profile = tuple(ShapeRange(*entry) for entry in order.profile)
        options = BuildOptions(order.precision, (profile,), fixed_sizes=True)
        try:
            worker = stack.enter_context(Worker(order.backend, time_limit_seconds=TIME_LIMIT_SECONDS))
            model_digest = sha256_file(model)
            outcome = compile_region(worker, model, model_digest, options, plan, cache=EngineCache())
        except ConversionError as error:
            log.warning("%s: no engine was built while serving: %s", order.region, error.problem)
            return
        if not outcome.built:
            log.warning("%s: no engine was built while serving: %s", order.region, outcome.failure)
            return
        log.info("%s: built an engine for %s in %.1f s", order.region, order.profile, outcome.seconds)
        order.ready(
            Plan(
                order.backend,
                "gpu",
                worker.version,
                order.precision,
                sha256_file(plan),
                plan.stat().st_size,
                model_digest,
                profiles=(order.profile,),
            ),
            plan,
        )


builder = Builder()
"""The process's."""
