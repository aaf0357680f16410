"""What progress bars cost a build: TensorRT for RTX builds a region with nobody listening, and with a bar on a terminal that
follows TensorRT's progress monitor, the two in turn.

Wall time is shared with whatever else runs on the machine, and on a busy one the pairs say little; processor time is counted
for both processes, that which builds and that which draws. Besides, what the bar does is timed by itself: the monitor's
calls in the building process, and the drawing.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import record
from benchmarks.scaling import chain
from stages import backends
from stages.backends import nvinfer
from stages.backends.base import BuildOptions
from stages.backends.isolated import Worker
from stages.backends.phases import Phases
from stages.progress import heard_by

PAIRS = 40
CHAIN_OPS = 1_000


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one build."""

    wall: float
    building_cpu: float
    drawing_cpu: float

    @property
    def cpu(self) -> float:
        return self.building_cpu + self.drawing_cpu


def main() -> None:
    from stages import export, freeze, split

    figures: dict[str, object] = {"pairs": PAIRS}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("resnet50", "keras:ResNet50"), ("chain_1000", chain(CHAIN_OPS, None))):
            work = Path(folder) / name
            exported = export.export(freeze.freeze(model, work / "freeze"), work / "export")
            options = split.SplitOptions("tensorrt_rtx", cache=False)
            (region,) = split.split(exported, work / "split", options=options).regions
            figures[name] = measure(region.model, work, BuildOptions("fp32", region.profiles)) | {
                "ops": len(region.ops)
            }
    figures["load_average"] = round(os.getloadavg()[1], 1)  # of the last five minutes
    record.write("progress", figures)


def measure(model: Path, work: Path, options: BuildOptions) -> dict[str, object]:
    """Build again and again, without and with a bar."""
    without: list[Cost] = []
    followed: list[Cost] = []
    with Worker("tensorrt_rtx") as worker:
        for pair in range(PAIRS + 1):
            quiet_first = pair % 2 == 0
            for bar in (not quiet_first, quiet_first):
                with terminal() if bar else contextlib.nullcontext():
                    cost = build(worker, model, work / "plan", options, bar=bar)
                if pair:  # the first pair warms up
                    (followed if bar else without).append(cost)
    pairs = list(zip(without, followed, strict=True))
    wall, cpu = [b.wall / a.wall for a, b in pairs], [b.cpu / a.cpu for a, b in pairs]
    drawing = [cost.drawing_cpu for cost in followed], [cost.drawing_cpu for cost in without]
    return {
        "wall_milliseconds_without": round(1000 * statistics.median(cost.wall for cost in without), 1),
        "wall_milliseconds_with": round(1000 * statistics.median(cost.wall for cost in followed), 1),
        "median_of_paired_wall_ratios": round(statistics.median(wall), 4),
        "wall_interval": interval(wall),
        "median_of_paired_cpu_ratios": round(statistics.median(cpu), 4),
        "cpu_interval": interval(cpu),
        "drawing_share": round(
            (statistics.median(drawing[0]) - statistics.median(drawing[1]))
            / statistics.median(cost.building_cpu for cost in without),
            5,
        ),
        "monitor_share": round(statistics.median(monitor_share(model, work / "plan", options) for _ in range(5)), 5),
    }


def monitor_share(model: Path, plan: Path, options: BuildOptions) -> float:
    """Of a build's processor time, what is spent in the monitor's Python code: a build in this process."""
    inside = 0.0

    def timed(method: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            nonlocal inside
            start = time.thread_time()
            method(*arguments)
            inside += time.thread_time() - start

        return call

    class Timed(Phases):
        start = timed(Phases.start)
        step = timed(Phases.step)
        finish = timed(Phases.finish)

    kept, nvinfer.Phases = nvinfer.Phases, Timed  # type: ignore[misc]
    try:
        begin = time.process_time()
        with heard_by(lambda share, words: None):
            outcome = backends.get("tensorrt_rtx").build(model, plan, options)
        assert outcome.built, outcome.failure
        return inside / (time.process_time() - begin)
    finally:
        nvinfer.Phases = kept  # type: ignore[misc]


def interval(ratios: Sequence[float]) -> list[float]:
    """Where the true median lies with 95 % confidence, whatever the distribution: by order statistics."""
    ordered, count = sorted(ratios), len(ratios)
    margin = round(0.98 * math.sqrt(count))
    return [round(ordered[count // 2 - margin], 4), round(ordered[(count - 1) // 2 + margin], 4)]


def build(worker: Worker, model: Path, plan: Path, options: BuildOptions, *, bar: bool) -> Cost:
    from pipeline.progress import ConsoleProgress

    with ConsoleProgress().stage("build") if bar else contextlib.nullcontext():
        assert worker.pid is not None
        start, building, drawing = time.perf_counter(), cpu_seconds(worker.pid), time.process_time()
        outcome = worker.build(model, plan, options)
        end, building_end, drawing_end = time.perf_counter(), cpu_seconds(worker.pid), time.process_time()
    assert outcome.built, outcome.failure
    return Cost(end - start, building_end - building, drawing_end - drawing)


def cpu_seconds(pid: int) -> float:
    """Processor time of another process, all threads: clock_getcpuclockid(3) as Linux computes it."""
    return time.clock_gettime((~pid << 3) | 2)


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Standard error is a terminal that somebody reads."""
    ours, theirs = os.openpty()

    def read() -> None:
        with contextlib.suppress(OSError):  # so Linux says that the other end is closed
            while os.read(ours, 1 << 16):
                pass

    reader = threading.Thread(target=read)
    reader.start()
    kept = sys.stderr
    with os.fdopen(theirs, "w") as sys.stderr:
        yield
    sys.stderr = kept
    reader.join()
    os.close(ours)


if __name__ == "__main__":
    main()
