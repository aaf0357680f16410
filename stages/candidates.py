"""Candidate regions: clusters of the ops that are still eligible, each exported to ONNX by itself.

Both `export` (the largest candidates) and `split` (what is left after TensorRT's refusals) work on this state.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.artifacts import LeftOp, Reason, Region, Weight, layer_of, load_weight
from stages.chunks import MOST_OPS, chunks
from stages.cluster import cluster
from stages.exporters import Exporters
from stages.exporting import Attempt, Task, export_to
from stages.graph import Graph
from stages.regions import Cut, Subgraph, cut, extract, tensors
from stages.screen import BOUNDARY_DTYPES, Refusal, screen, work
from stages.worth import Estimate, Worth

log = logging.getLogger(__name__)

_SURELY_ENOUGH = 20
"""Computing ops that are worth an engine whatever their shapes: to launch them one by one takes 0.3 ms."""
STREAMED_BYTES = 256 << 20
"""Of a region with more large weights than this, no value is read before its ONNX model is written: they lie beside it."""


@dataclass(frozen=True, slots=True)
class Translated:
    """A set of ops as ONNX on disk, or the ops that stood in the way."""

    region: Region | None
    refused: dict[int, Refusal]
    failure: str = ""
    """Set where the export failed without naming an op."""


class Candidates:
    """The ops of one graph still eligible for regions, and the regions that they form.

    Args:
        folder: where ONNX models are written, one folder per region tried.
        keep_in_tf: op types, node names or patterns that stay in TensorFlow.
        min_region: smallest number of computing ops (data movement not counted) that make a region; None: any that
            saves time, as `worth` estimates.
        first: number of the first region tried, where other graphs have regions already.
    """

    def __init__(
        self,
        graph: Graph,
        folder: Path,
        *,
        keep_in_tf: Sequence[str],
        min_region: int | None,
        first: int = 0,
    ) -> None:
        self.graph = graph
        self.folder = folder
        self.min_region = min_region
        self.worth: Worth = Estimate(graph)
        self.refused: dict[int, Refusal] = screen(graph, keep_in_tf)
        self._active = [i for i, node in enumerate(graph.nodes) if node.needed and not node.free]
        self._local = {i: n for n, i in enumerate(self._active)}
        self._predecessors = [
            sorted({self._local[p] for p in graph.nodes[i].predecessors if p in self._local and p < i})
            for i in self._active
        ]
        self._computing = set(graph.computing())
        self._translated: dict[tuple[int, ...], Translated] = {}
        self._saved_seconds: dict[tuple[int, ...], float] = {}
        self._attempts = itertools.count()
        self.tried = first
        """The number of the next region."""

    def evict(self, refused: dict[int, Refusal]) -> None:
        """Return ops to TensorFlow; the first reason for an op is kept."""
        for i, refusal in refused.items():
            self.refused.setdefault(i, refusal)

    def remember(self, region: Region) -> None:
        """Take over a region of this graph that an earlier stage exported."""
        ops = tuple(self.graph.number[name] for name in region.ops)
        self._translated[ops] = Translated(region, {})

    def settle(self) -> list[Region]:
        """Cluster and export until every candidate is exported whole; ops that can't be are returned to TensorFlow."""
        with Exporters() as exporters:
            return self._settle(exporters)

    def _settle(self, exporters: Exporters) -> list[Region]:
        while True:
            cuts = [cut(self.graph, ops) for ops in self._clusters()]
            refused = {i: r for boundary in cuts for i, r in self._at_boundary(boundary).items()}
            if not refused:
                new = [boundary for boundary in cuts if boundary.ops not in self._translated]
                for boundary, attempt in zip(new, exporters.run(new, self._attempt, self._pack), strict=True):
                    self._translated[boundary.ops] = self._adopt(boundary, attempt)
                results = [self._translated[boundary.ops] for boundary in cuts]
                refused = {i: refusal for result in results for i, refusal in result.refused.items()}
                for boundary, result in zip(cuts, results, strict=True):
                    if result.failure:
                        refused.update(self.blame(boundary.ops, result.failure))
                if not refused:
                    return [result.region for result in results if result.region is not None]
            self.evict(refused)

    def translate(self, boundary: Cut) -> Translated:
        """Export a set of ops, or take the result from before; never raises for what tf2onnx can't do."""
        if boundary.ops not in self._translated:
            self._translated[boundary.ops] = self._adopt(boundary, self._attempt(boundary))
        return self._translated[boundary.ops]

    def blame(self, ops: Sequence[int], failure: str) -> dict[int, Refusal]:
        """The op that makes an export fail which names none: the last of the smallest prefix that fails."""

        def fails(prefix: Sequence[int]) -> bool:
            result = self.translate(cut(self.graph, prefix))
            return bool(result.failure or result.refused)

        return dict.fromkeys(bisect(ops, fails), (Reason.UNTRANSLATED, failure))

    def members(self, names: Iterable[str], ops: Sequence[int]) -> set[int]:
        """The ops among `ops` that TensorFlow node names stand for; a constant stands for the ops that read it."""
        inside = set(ops)
        found: set[int] = set()
        for name in names:
            pending = [self.graph.number[name]] if name in self.graph.number else []
            while pending:
                i = pending.pop()
                if i in inside:
                    found.add(i)
                elif self.graph.nodes[i].free:
                    pending.extend(consumer for consumer, _ in self.graph.consumers[i])
        return found

    def left(self, regions: Sequence[Region]) -> tuple[LeftOp, ...]:
        """Every computing op outside the regions, with its reason."""
        inside = {self.graph.number[name] for region in regions for name in region.ops}
        small = {i: why for ops in self._pieces() for why in [self._too_small(ops)] for i in ops}
        result = []
        for i in sorted(self._computing - inside):
            node = self.graph.nodes[i]
            reason, detail = self.refused.get(i) or self._why_small(i, inside, small)
            name = self.graph.full_name(node.name)
            result.append(LeftOp(name, node.op, layer_of(name), reason, detail))
        return tuple(result)

    def _clusters(self) -> list[tuple[int, ...]]:
        return [ops for ops in self._pieces() if not self._too_small(ops)]

    def _pieces(self) -> list[tuple[int, ...]]:
        supported = [i in self._computing and i not in self.refused for i in self._active]
        clusters = [[self._active[n] for n in members] for members in cluster(self._predecessors, supported)]
        return [piece for ops in clusters for piece in chunks(self.graph, ops, MOST_OPS)]

    def _too_small(self, ops: tuple[int, ...]) -> str:
        """Why a cluster is not worth an engine; empty if it is."""
        count = sum(work(self.graph, i) for i in ops)
        if self.min_region is not None:
            return "" if count >= self.min_region else f"its cluster has fewer than {self.min_region} computing ops"
        if count >= _SURELY_ENOUGH:
            return ""
        if not count:
            return "its cluster only moves data"
        if ops not in self._saved_seconds:
            self._saved_seconds[ops] = self.worth.saved_seconds(cut(self.graph, ops))
        saved = self._saved_seconds[ops]
        return (
            "" if saved > 0 else f"an engine for its {count} computing ops would lose {-saved * 1e6:.0f} µs (estimated)"
        )

    def _at_boundary(self, boundary: Cut) -> dict[int, Refusal]:
        """Ops to return because a tensor between them and TensorFlow is none that an engine can take or give."""
        inside = set(boundary.ops)
        refused: dict[int, Refusal] = {}
        for end in boundary.inputs:
            problem = self._unfit(*end)
            if problem:
                readers = (
                    consumer for consumer, k in self.graph.consumers[end[0]] if k == end[1] and consumer in inside
                )
                refused.update(dict.fromkeys(readers, problem))
        for end in boundary.outputs:
            problem = self._unfit(*end)
            if problem:
                refused[end[0]] = problem
        if not boundary.outputs:
            refused.update(dict.fromkeys(boundary.ops, (Reason.TOO_SMALL, "nothing outside reads a result")))
        return refused

    def _unfit(self, source: int, output: int) -> Refusal | None:
        tensor = self.graph.tensor(source, output)
        if tensor.dtype not in BOUNDARY_DTYPES:
            return Reason.DTYPE, f"{tensor.name} is {tensor.dtype} and would cross the region's boundary"
        if tensor.shape is None:
            return Reason.UNKNOWN_RANK, f"{tensor.name} would cross the region's boundary without a known rank"
        return None

    def _extract(self, boundary: Cut) -> tuple[Subgraph, tuple[Weight, ...]]:
        """The sub-graph, and the weights that are Placeholders in it."""
        subgraph = extract(self.graph, boundary, weights_inside=False)
        weights = tuple(self.graph.weights[node] for node in subgraph.weights)
        if sum(load_weight(self.graph.frozen, weight).nbytes for weight in weights) <= STREAMED_BYTES:
            return extract(self.graph, boundary, weights_inside=True), ()
        return subgraph, weights

    def _attempt(self, boundary: Cut) -> Attempt:
        """Export in this process."""
        subgraph, weights = self._extract(boundary)
        values = {weight.node: load_weight(self.graph.frozen, weight) for weight in weights}
        return export_to(self._scratch(), subgraph.graph_def, subgraph.inputs, subgraph.outputs, values)

    def _pack(self, boundary: Cut) -> Task:
        """What a child process needs for that."""
        subgraph, weights = self._extract(boundary)
        target = self._scratch()
        path = target.with_suffix(".pb")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(subgraph.graph_def.SerializeToString())
        return Task(path, subgraph.inputs, subgraph.outputs, weights, self.graph.frozen.folder, target)

    def _scratch(self) -> Path:
        return self.folder / f"attempt_{next(self._attempts)}"

    def _adopt(self, boundary: Cut, attempt: Attempt) -> Translated:
        """The region that an attempt made, under its name; or the ops that stood in the way."""
        if attempt.failure:
            return Translated(None, {}, attempt.failure)
        if attempt.unsupported:
            refused: dict[int, Refusal] = {}
            for name, op_type, message in attempt.unsupported:
                why = message or f"tf2onnx has no translation of {op_type}"
                refused.update(dict.fromkeys(self.members([name], boundary.ops), (Reason.UNTRANSLATED, why)))
            return Translated(None, refused, "" if refused else str(attempt.unsupported[0]))
        name = f"region_{self.tried}"
        self.tried += 1
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        attempt.target.rename(folder)
        log.info("exported %s: %d ops to %d ONNX nodes", name, len(boundary.ops), attempt.nodes)
        region = Region(
            name,
            tuple(self.graph.nodes[i].name for i in boundary.ops),
            tensors(self.graph, boundary.inputs),
            tensors(self.graph, boundary.outputs),
            folder / "model.onnx",
            attempt.digest,
            scope=self.graph.scope,
        )
        return Translated(region, {})

    def _why_small(self, i: int, inside: set[int], small: Mapping[int, str]) -> Refusal:
        around = [*self.graph.nodes[i].predecessors, *(consumer for consumer, _ in self.graph.consumers[i])]
        if any(j in inside for j in around):
            return Reason.CYCLE, "joined to the neighbouring region it would wait for its own result"
        return Reason.TOO_SMALL, small.get(i, "")


def bisect(ops: Sequence[int], fails: Callable[[Sequence[int]], bool]) -> set[int]:
    """The culprit of a set of ops that fails as a whole: the last op of the smallest prefix that fails.

    `ops` is in topological order, so each prefix of a convex set is convex. If a single op fails, it is that one.
    """
    low, high = 0, len(ops)
    while high - low > 1:
        middle = (low + high) // 2
        if fails(ops[:middle]):
            high = middle
        else:
            low = middle
    return {ops[high - 1]}
