"""Stage 3: the regions that TensorRT takes, found by asking it.

Every candidate is checked by TensorRT's parser, built, and compared with TensorFlow. An op that stands in the way
returns to TensorFlow; what is left is clustered again, and only changed regions are exported again, until all pass.
"""

from __future__ import annotations

import logging
import shutil
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from stages import progress, storage
from stages.artifacts import LeftOp, OnnxExport, Partition, Reason, Region, ShapeRange
from stages.backends.base import BuildOptions
from stages.backends.crew import Crew
from stages.backends.isolated import Worker
from stages.candidates import Candidates
from stages.compare import TOLERANCES
from stages.enginecache import EngineCache
from stages.errors import VerifyError
from stages.graph import Graph
from stages.judge import Judge
from stages.profiles import ProfileMaker
from stages.samples import Samples, read, verification_samples
from stages.scopes import Scope, usable
from stages.sizes import DEFAULT_MAX_PROFILES, size_ranges

log = logging.getLogger(__name__)

REGION_SLACK = 10
"""A region may be this many times further from TensorFlow than the whole model may: what is sought here is wrong
translations, not rounding; the whole model is compared at the end with the tolerance that was asked for."""


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How to split.

    Attributes:
        backend: the TensorRT to ask, `tensorrt` or `tensorrt_rtx` (or `onnxruntime`, where neither is there).
        shapes: sizes of the model's inputs, by input, one entry per input and profile.
        samples: real inputs, as for `samples.read`; without, random ones are drawn.
        max_profiles: the most shape profiles that are made of the samples' sizes.
        keep_in_tf: op types, node names or patterns that stay in TensorFlow.
        min_region: smallest number of computing ops that make a region; None: as many as pay for its boundary (`worth`).
        workspace_mib: builder memory in MiB.
        capabilities: compute capabilities to build for, as `8.6`.
        time_limit_seconds: for one support query or build.
        cache: keep and reuse built engines in the user's cache folder.
        dry_run: only ask the parser: nothing is built or compared with TensorFlow, so that shapes and samples are not
            needed, and regions have neither profiles nor errors. Quick; a full split may accept less.
    """

    backend: str = "tensorrt_rtx"
    shapes: tuple[ShapeRange, ...] = ()
    samples: Samples = None
    max_profiles: int = DEFAULT_MAX_PROFILES
    keep_in_tf: tuple[str, ...] = ()
    min_region: int | None = None
    workspace_mib: int | None = None
    capabilities: tuple[str, ...] = ()
    time_limit_seconds: float = 600.0
    cache: bool = True
    dry_run: bool = False


def split(export: OnnxExport, out: Path, *, options: SplitOptions) -> Partition:
    """Split a graph into what TensorRT runs and what TensorFlow runs; likewise the body of every branch and loop that
    TensorFlow runs.

    Raises:
        ArtifactError: `out` exists or can't be written.
        SplitError: a shape range is missing or wrong; samples don't fit the model.
        VerifyError: TensorFlow can't run the model on the samples.
        BackendError: the back end is missing.
    """
    given = [] if options.dry_run else read(export.frozen, options.samples)
    ranges = () if options.dry_run else size_ranges(export.frozen, options.shapes, given, options.max_profiles)
    drawn = [] if options.dry_run else verification_samples(export.frozen, ranges, given)
    with (
        storage.write_folder(out) as folder,
        Crew(Worker(options.backend, time_limit_seconds=options.time_limit_seconds)) as crew,
        ExitStack() as stack,
    ):

        def judge(scope: Scope, candidates: Candidates) -> Judge:
            return Judge(
                candidates,
                scope,
                ProfileMaker(scope, export.frozen, ranges, given),
                crew,
                samples=usable(scope, drawn),
                tolerance=REGION_SLACK * TOLERANCES["fp32"],
                options=BuildOptions("fp32", (), options.workspace_mib, options.capabilities),
                cache=EngineCache() if options.cache else None,
                parse_only=options.dry_run,
            )

        tried, number, total = folder / "tried", 0, 0
        regions: list[Region] = []
        left: list[LeftOp] = []
        scopes = deque([Scope(Graph(export.frozen))])
        while scopes:
            scope = scopes.popleft()
            stack.callback(scope.close)
            candidates = Candidates(
                scope.graph, tried, keep_in_tf=options.keep_in_tf, min_region=options.min_region, first=number
            )
            for region in export.candidates:
                if region.scope == scope.graph.scope:
                    candidates.remember(region)
            found = _accepted(scope, candidates, judge)
            regions += (_adopt(r, f"region_{n}", folder / "regions") for n, r in enumerate(found, start=len(regions)))
            left += candidates.left(found)
            number, total = candidates.tried, total + len(scope.graph.computing())
            scopes.extend(scope.inner(found))
        shutil.rmtree(tried, ignore_errors=True)
        storage.save(Partition(folder, export.frozen, options.backend, tuple(regions), tuple(left), total), folder)
    return storage.load(Partition, out)


def _accepted(scope: Scope, candidates: Candidates, judge: Callable[[Scope, Candidates], Judge]) -> list[Region]:
    """The regions of one graph; none in a body that can't be compared with TensorFlow."""
    try:
        return _settle(candidates, judge(scope, candidates)) if candidates.settle() else []
    except VerifyError as error:
        if not scope.graph.scope:
            raise
        refusal = (Reason.CONTROL_FLOW, f"its branch or loop can't be run by itself: {error.problem}")
        candidates.evict(dict.fromkeys(scope.graph.computing(), refusal))
        return []


def _settle(candidates: Candidates, judge: Judge) -> list[Region]:
    """Evict what is refused until every region is accepted."""
    accepted: dict[tuple[str, ...], Region] = {}
    while True:
        regions = candidates.settle()
        refused = False
        undecided = [region for region in regions if region.ops not in accepted]
        # Asking takes most of the time: the parser, a build; then TensorFlow computes what a region is compared with.
        tally = progress.Tally(2 * len(undecided))
        with tally.part(len(undecided), ""):
            judge.look_ahead(undecided)
        for region in undecided:
            with tally.part(1, f"{region.name} compared with TensorFlow"):
                verdict = judge.judge(region)
            if verdict.refused:
                candidates.evict(verdict.refused)
                refused = True
            else:
                accepted[region.ops] = verdict.region
        if not refused:
            return [accepted[region.ops] for region in regions]


def _adopt(region: Region, name: str, folder: Path) -> Region:
    """Keep a region's model under its final name."""
    source = region.model.parent
    target = folder / name
    target.mkdir(parents=True)
    for file in source.iterdir():
        storage.link_or_copy(file, target / file.name)
    return replace(region, name=name, model=target / region.model.name)
