"""The verdict on one candidate region: does TensorRT take it, does it build, is it right?

A refusal is traced back to the TensorFlow ops behind it. Where nothing is named (a crash, a build failure, a wrong
result) the culprit is found by bisection: over prefixes of the ONNX model where the failure is TensorRT's, else over
prefixes of the region in topological order, each exported by itself.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages import onnx_files, progress, storage, translate
from stages.artifacts import Reason, Region
from stages.backends.base import BuildOptions, Support
from stages.backends.base import Refusal as NodeRefusal
from stages.backends.crew import Crew, Workers
from stages.backends.isolated import Worker
from stages.candidates import Candidates, bisect
from stages.compare import Array, Difference, difference, worst
from stages.enginecache import EngineCache, compile_region
from stages.errors import VerifyError
from stages.execute import run_model
from stages.profiles import ProfileMaker, onnx_inputs
from stages.regions import cut
from stages.scopes import Call, Scope
from stages.screen import Refusal
from stages.surgery import first_failing_node

log = logging.getLogger(__name__)

_NAMED_IN_BUILD = 3
"""A build failure that names more ops than this names none: it quotes a fused layer."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Accepted, with profiles and error filled in; or the ops to return to TensorFlow."""

    region: Region
    refused: dict[int, Refusal]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the back end says of a region (with profiles): its parser and, where that takes it, why it could not be built."""

    region: Region
    support: Support
    failure: str = ""


class Judge:
    """Decides on regions, one after the other; remembers TensorFlow's values between calls.

    Args:
        crew: workers of one back end.
        samples: inputs of the graph by tensor name; every region is compared with TensorFlow on each of them.
        tolerance: largest relative error of a region.
        parse_only: ask the parser and nobody else.
    """

    def __init__(
        self,
        candidates: Candidates,
        scope: Scope,
        maker: ProfileMaker,
        crew: Crew,
        *,
        samples: Sequence[Call],
        tolerance: float,
        options: BuildOptions,
        cache: EngineCache | None,
        parse_only: bool = False,
    ) -> None:
        self._candidates = candidates
        self._graph = candidates.graph
        self._scope = scope
        self._maker = maker
        self._crew = crew
        (self._worker,) = crew.lead
        self._answers: dict[Path, _Answer] = {}
        self._samples = samples
        self._tolerance = tolerance
        self._options = options
        self._cache = cache
        self._parse_only = parse_only
        self._values: list[dict[str, Array]] = [{} for _ in samples]
        self._repeatable = not any(node.needed and node.stateful for node in self._graph.nodes)

    def look_ahead(self, regions: Sequence[Region]) -> None:
        """Get what the verdicts on these regions need: from TensorFlow all of it in one go for each sample, from the back
        end for several regions at the same time.

        Raises:
            VerifyError: TensorFlow can't run the model on the samples.
            BackendError: the back end is missing.
        """
        if not self._parse_only:
            self._maker.observe(regions)
        asked = progress.Tally(sum(len(region.ops) for region in regions))

        def ask(workers: Workers, region: Region) -> _Answer:
            with asked.part(len(region.ops), f"{region.name}, {len(region.ops)} ops"):
                return self._ask(workers, region)

        answers = self._crew.map(ask, [self._profiled(region) for region in regions])
        self._answers = {answer.region.model: answer for answer in answers}
        if self._repeatable and not self._parse_only:
            names = dict.fromkeys(tensor.name for region in regions for tensor in (*region.inputs, *region.outputs))
            for sample, values in zip(self._samples, self._values, strict=True):
                missing = [name for name in names if name not in values]
                if missing:
                    values.update(self._scope.reference.run(missing, sample))

    def judge(self, region: Region) -> Verdict:
        """Check, build and verify a region.

        Raises:
            VerifyError: TensorFlow can't run the model on the samples.
            BackendError: the back end is missing.
        """
        ops = tuple(self._graph.number[name] for name in region.ops)
        answer = self._answers.get(region.model) or self._ask(self._crew.lead, self._profiled(region))
        region = answer.region
        refused = self._refused_by_parser(region, ops, answer.support)
        if not refused and answer.failure:
            refused = self._refused_by_builder(region, ops, answer.failure)
        if not refused and not self._parse_only:
            refused = self._untried(ops)
        if not refused and not self._parse_only:
            error = self.error(region)
            if error.why or not error.max_rel <= self._tolerance:
                detail = error.why or f"relative error {error.max_rel:.1e}, allowed {self._tolerance:.0e}"
                refused = self._bisect(ops, self._is_wrong, Reason.WRONG_RESULT, detail)
            region = replace(region, max_abs_error=error.max_abs, max_rel_error=error.max_rel)
        for i, (reason, detail) in refused.items():
            log.info("%s: %s stays in TensorFlow: %s: %s", region.name, self._graph.nodes[i].name, reason.value, detail)
        return Verdict(region, refused)

    def _profiled(self, region: Region) -> Region:
        return region if self._parse_only else replace(region, profiles=self._maker.profiles(region))

    def _ask(self, workers: Workers, region: Region) -> _Answer:
        """Called in several threads at once."""
        (worker,) = workers
        support = worker.check(region.model)
        if self._parse_only or not support.accepted or support.shape_inputs:
            return _Answer(region, support)
        return _Answer(region, support, self._build_failure(worker, region))

    def _untried(self, ops: Sequence[int]) -> dict[int, Refusal]:
        """Branches and loops that the samples don't run in full, so that comparing them as a whole proves nothing."""
        found = self._scope.untried(ops, self._samples)
        return {
            i: (Reason.CONTROL_FLOW, f"no sample runs {part}, which is split by itself") for i, part in found.items()
        }

    def error(self, region: Region) -> Difference:
        """A region's ONNX model against TensorFlow, on every sample; the worst output counts."""
        read = onnx_inputs(region)
        wanted = [tensor.name for tensor in (*region.inputs, *region.outputs)]
        differences: list[Difference] = []
        for sample, values in zip(self._samples, self._values, strict=True):
            # Where state changes from run to run, only tensors of one run belong together.
            missing = [name for name in wanted if not self._repeatable or name not in values]
            if missing:
                values.update(self._scope.reference.run(missing, sample))
            try:
                results = run_model(region.model, {name: values[tensor.name] for name, tensor in read})
            except VerifyError as failed:
                return Difference(np.inf, np.inf, f"can't be verified: {failed.problem}")
            named = [results[f"output_{i}"] for i in range(len(region.outputs))]
            differences += [difference(values[t.name], got) for t, got in zip(region.outputs, named, strict=True)]
        return worst(differences)

    def _refused_by_parser(self, region: Region, ops: tuple[int, ...], support: Support) -> dict[int, Refusal]:
        if support.accepted and not support.shape_inputs:
            return {}
        if support.shape_inputs:
            ends = [int(name.removeprefix("input_")) for name in support.shape_inputs]
            names = {region.inputs[i].name for i in ends}
            refused: dict[int, Refusal] = {}
            for i in ops:
                for end in self._graph.nodes[i].inputs:
                    if self._graph.tensor(*end).name in names:
                        detail = (
                            f"{self._graph.tensor(*end).name} decides shapes and would have to be known to the engine"
                        )
                        refused[i] = (Reason.SHAPE_TENSOR, detail)
            return refused
        refused = self._traced(region, ops, support.refusals)
        if refused:
            return refused
        words = support.failure or "; ".join(refusal.message for refusal in support.refusals)
        return self._cut(region, ops, lambda path: not self._worker.check(path).accepted, Reason.REFUSED, words) or (
            self._bisect(ops, self._is_refused, Reason.REFUSED, words)
        )

    def _traced(self, region: Region, ops: Sequence[int], refusals: Sequence[NodeRefusal]) -> dict[int, Refusal]:
        """The TensorFlow ops behind refused ONNX nodes."""
        origins = _origins(region)
        found: dict[int, Refusal] = {}
        for refusal in refusals:
            detail = f"{refusal.op_type}: {refusal.message}" if refusal.op_type else refusal.message
            for i in self._candidates.members(origins.get(refusal.node, ()), ops):
                found.setdefault(i, (Reason.REFUSED, detail))
        return found

    def _refused_by_builder(self, region: Region, ops: tuple[int, ...], failure: str) -> dict[int, Refusal]:
        origins = _origins(region)
        named = {name for name in origins if re.search(rf"(?<![\w/.-]){re.escape(name)}(?![\w/.-])", failure)}
        culprits = self._candidates.members({op for name in named for op in origins[name]}, ops)
        if 0 < len(culprits) <= min(_NAMED_IN_BUILD, len(ops) - 1):
            return dict.fromkeys(culprits, (Reason.BUILD_FAILED, failure))
        found = self._cut(region, ops, lambda path: self._prefix_fails(path, region), Reason.BUILD_FAILED, failure)
        return found or self._bisect(ops, self._fails_to_build, Reason.BUILD_FAILED, failure)

    def _build_failure(self, worker: Worker, region: Region) -> str:
        with self._scratch() as folder:
            options = replace(self._options, profiles=region.profiles)
            plan = folder / "plan"
            outcome = compile_region(worker, region.model, region.digest, options, plan, cache=self._cache)
            return "" if outcome.built else outcome.failure or "the build failed without a message"

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder that goes again, on the disk of the result: `/tmp` may be small, or memory."""
        self._candidates.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._candidates.folder) as folder:
            yield Path(folder)

    def _prefix_fails(self, model: Path, region: Region) -> bool:
        """Whether a prefix of a region's ONNX model does not build."""
        import onnx

        read = {value.name for value in onnx.load(model, load_external_data=False).graph.input}
        profiles = tuple(tuple(entry for entry in profile if entry.input in read) for profile in region.profiles)
        plan = model.with_suffix(".plan")
        outcome = self._worker.build(model, plan, replace(self._options, profiles=profiles))
        plan.unlink(missing_ok=True)
        return not outcome.built

    def _cut(
        self, region: Region, ops: Sequence[int], fails: Callable[[Path], bool], reason: Reason, detail: str
    ) -> dict[int, Refusal]:
        """The ops behind the ONNX node at which a region begins to fail; none if the model can't be cut, or if what was
        found is all of it. Cutting the ONNX model is quicker than exporting parts of the region anew."""
        import onnx

        with self._scratch() as folder:
            for file in onnx_files.files_beside(region.model):
                storage.link_or_copy(file, folder / file.name)
            model = onnx.load(region.model, load_external_data=False)
            node = first_failing_node(model, folder, fails)
        culprits = self._candidates.members(_origins(region).get(node, ()), ops)
        return dict.fromkeys(culprits, (reason, detail)) if len(culprits) < len(ops) else {}

    def _bisect(
        self, ops: Sequence[int], fails: Callable[[Sequence[int]], bool], reason: Reason, detail: str
    ) -> dict[int, Refusal]:
        return dict.fromkeys(bisect(ops, fails), (reason, detail))

    def _part(self, ops: Sequence[int]) -> Region | None:
        """A prefix of a region as a region of its own; None if it does not even export."""
        return self._candidates.translate(cut(self._graph, ops)).region

    def _is_refused(self, ops: Sequence[int]) -> bool:
        part = self._part(ops)
        return part is None or not self._worker.check(part.model).accepted

    def _fails_to_build(self, ops: Sequence[int]) -> bool:
        part = self._part(ops)
        if part is None or not self._worker.check(part.model).accepted:
            return True
        return bool(self._build_failure(self._worker, self._profiled(part)))

    def _is_wrong(self, ops: Sequence[int]) -> bool:
        part = self._part(ops)
        return part is None or not self.error(part).max_rel <= self._tolerance


def _origins(region: Region) -> dict[str, frozenset[str]]:
    import onnx

    return translate.origins_by_node(onnx.load(region.model, load_external_data=False), set(region.ops))
