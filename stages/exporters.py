"""Sub-graphs exported by child processes beside this one, where there is enough to do.

tf2onnx keeps its state in module globals, so threads don't help. A child has to import TensorFlow first, which takes
seconds: this process exports meanwhile, and does itself what a child fails on.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from stages import progress, recordjson
from stages.childprocess import ChildProcess, Killed, Lost
from stages.cores import side_by_side
from stages.exportchild import ROOT
from stages.exporting import Attempt, Task
from stages.memory import available_mib
from stages.regions import Cut

WORTH_OPS = 6_000
"""Ops to export from which children pay: a chain of small ops takes 1 ms each, a child 3 to 4 s to start (two cores), and
while it starts it takes a core. Below that this process is done, or nearly, when the child is ready."""
_SHARE = 0.9
"""Of the available memory, what this process and its children may take together."""
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
"""Nothing is computed on the GPU, and TensorFlow would take all of its memory."""

log = logging.getLogger(__name__)

Here = Callable[[Cut], Attempt]
Pack = Callable[[Cut], Task]


class Exporters:
    """The children, started when they pay and kept until the end of the block."""

    def __init__(self) -> None:
        self._children: list[ChildProcess] = []

    def __enter__(self) -> Exporters:
        return self

    def __exit__(self, *exception: object) -> None:
        for child in self._children:
            child.stop()

    def run(self, cuts: Sequence[Cut], here: Here, pack: Pack) -> list[Attempt]:
        """Export cuts; the attempts in their order.

        Args:
            here: exports one in this process.
            pack: writes the files of one for a child; called by threads.
        """
        most = side_by_side(len(cuts)) - 1
        tally = progress.Tally(sum(len(boundary.ops) for boundary in cuts))
        if not self._children and sum(len(boundary.ops) for boundary in cuts) >= WORTH_OPS:
            self._children = [ChildProcess("stages.exportchild", environment=_ENVIRONMENT) for _ in range(most)]
        if not most or not self._children:
            return [_one(here, boundary, tally) for boundary in cuts]
        attempts = _Round(cuts, pack, tally).run(self._children[:most], here)
        self._children = [child for child in self._children if child.alive]
        return attempts


def _one(here: Here, boundary: Cut, tally: progress.Tally) -> Attempt:
    with tally.part(len(boundary.ops), ""):
        return here(boundary)


class _Round:
    """One `run`: this process and its children take cuts from one queue, the largest first."""

    def __init__(self, cuts: Sequence[Cut], pack: Pack, tally: progress.Tally) -> None:
        self._cuts = cuts
        self._tally = tally
        self._pack = pack
        self._waiting = deque(sorted(range(len(cuts)), key=lambda n: -len(cuts[n].ops)))
        self._attempts: dict[int, Attempt] = {}
        self._ready: set[ChildProcess] = set()
        self._limit_mib: float | None = None

    def run(self, children: Sequence[ChildProcess], here: Here) -> list[Attempt]:
        available = available_mib()
        self._limit_mib = None if available is None else _SHARE * available / (1 + len(children))
        threads = ThreadPoolExecutor(len(children))
        try:
            served = [threads.submit(self._serve, child) for child in children]
            while (n := self._next()) is not None:
                self._attempts[n] = _one(here, self._cuts[n], self._tally)
            for child in set(children) - self._ready:
                child.kill()  # too late to be of use
            for future in served:
                future.result()
        except BaseException:
            for child in children:
                child.kill()
            raise
        finally:
            threads.shutdown()
        for n, boundary in enumerate(self._cuts):
            if n not in self._attempts:
                self._attempts[n] = _one(here, boundary, self._tally)
        return [self._attempts[n] for n in range(len(self._cuts))]

    def _serve(self, child: ChildProcess) -> None:
        """Let a child export until nothing is waiting. What it fails on stays without an attempt."""
        try:
            while self._waiting:
                if not child.alive:
                    child.start("exporter", self._limit)
                self._ready.add(child)
                if (n := self._next()) is not None:
                    with self._tally.part(len(self._cuts[n].ops), ""):
                        self._ask(child, n)
        except Killed:
            pass
        except (Lost, OSError) as error:
            log.info("no exporter beside this process: %s", error)

    def _next(self) -> int | None:
        try:
            return self._waiting.popleft()
        except IndexError:  # another thread may have come first
            return None

    def _ask(self, child: ChildProcess, n: int) -> None:
        task = self._pack(self._cuts[n])
        try:
            answer = child.request(json.dumps(recordjson.encode(task, ROOT)), "exporter", math.inf, self._limit)
            attempt = recordjson.decode(Attempt, json.loads(answer), ROOT)
        except Lost as lost:
            attempt = Attempt(task.target, failure=str(lost))
        finally:
            task.graph.unlink()
        if attempt.failure:
            # Perhaps for want of something that this process has, such as a library of ops.
            log.info("this process exports what a child did not: %s", attempt.failure)
            shutil.rmtree(task.target, ignore_errors=True)
        else:
            self._attempts[n] = attempt

    def _limit(self) -> float | None:
        return self._limit_mib
