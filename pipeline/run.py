"""The whole conversion: every stage once, from a model to a folder with a verified, stitched model."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from pipeline.config import Config, engine_options, split_options
from pipeline.keys import conversion_key, samples_key
from pipeline.page import PICTURE, write_page
from pipeline.picture import make_picture
from pipeline.pretrained import known_sizes, resolve
from pipeline.report import Report, Verification, make_report
from pipeline.resume import Work, partial_folder, work_folder
from pipeline.tensorboard import write_graphs
from pipeline.verify import explain, verify
from stages import backends, op_libraries, storage
from stages.artifacts import EngineSet, FrozenGraph, OnnxExport, Partition, StitchedGraph
from stages.autoprecision import AutoOptions, demote
from stages.backends.hardware import gpu_count
from stages.build import TABLE, EngineOptions, build
from stages.calibrating import CalibrationOptions, check_options
from stages.compare import Array
from stages.errors import VerifyError
from stages.export import export
from stages.freeze import freeze
from stages.graph import Graph
from stages.samples import read as read_samples
from stages.samples import verification_samples
from stages.sizes import size_ranges
from stages.split import split
from stages.stitch import stitch

Artifact = TypeVar("Artifact")

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Told when a stage begins and ends."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]: ...

    def taken_over(self, name: str, seconds: float) -> None:
        """A stage was finished before, by a conversion that was interrupted, in so many seconds."""


class Quiet:
    """Says nothing."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def taken_over(self, name: str, seconds: float) -> None:
        pass


def convert(
    model: object, out: str | Path, config: Config | None = None, *, progress: Progress | None = None
) -> Report:
    """Convert a model and write it to `out`: `saved_model/`, `regions/`, `report.json`,
    `report.html`, `graph.json` (and `model.pb` for a `.pb`).

    Args:
        model: a path (SavedModel folder, `.keras`, `.h5`, frozen `.pb`, `.meta` of a checkpoint or its folder),
            `keras:NAME`, `pretrained:NAME`, a live Keras model or tf.Module, a tf.function with an input signature, or a
            concrete function.
        out: a folder that does not exist yet. It appears when all is done and verified, or not at all. Stages that are
            finished when a conversion is interrupted or fails stay in `OUT.partial`, and the same call goes on from there
            (`Config.resume`); not for models that live in memory.
        progress: told of every stage; how far it has come says `stages.progress`.

    Raises:
        ConversionError: one of its subclasses, by stage; VerifyError if the stitched model is not TensorFlow's equal.
    """
    config = config or Config()
    progress = progress or Quiet()
    clock = _Clock(progress)
    out = Path(out)
    names = backends.choose(config.backend)
    if config.build_at_runtime:
        names = tuple(dict.fromkeys((*names, "onnxruntime")))
    left_out = partial_folder(out)
    keyed = config.resume and isinstance(config.error_metric, str)
    key = conversion_key(model, config.op_libraries, leave_out=left_out) if keyed else None
    with work_folder(out, key) as work:
        op_libraries.load(config.op_libraries)
        stage = partial(_stage, work, clock)
        frozen = stage("freeze", FrozenGraph, partial(freeze_model, model, config=config), *opening(config))
        config = with_known_sizes(model, config)
        given = read_samples(frozen, config.samples, spool=work.folder / "samples")
        config = replace(config, samples=given or None)  # an iterator gives them once
        check_options(frozen, config.precision, engine_options(config, names).calibration)
        ranges = size_ranges(frozen, config.shapes, given, config.max_profiles)
        samples = verification_samples(frozen, ranges, given)
        exporting = partial(export, frozen, keep_in_tf=config.keep_in_tf, min_region=config.min_region)
        exported = stage("export", OnnxExport, exporting, config.keep_in_tf, config.min_region)
        splitting = split_options(config, names[0])
        facts = replace(splitting, samples=None), samples_key(given)
        partition = stage("split", Partition, partial(split, exported, options=splitting), *facts)
        stitched, check = _built(partition, names, samples, config, work=work, clock=clock)
        engines = _with_verdicts(stitched.engines, check)
        report = make_report(_name(model), engines, config.precision, check, clock.seconds, ranges=ranges)
        work.forget("stitch")  # from here on its files move
        result = work.folder / "result"
        result.mkdir()
        _arrange(stitched, engines, result)
        report.write(result / "report.json")
        _draw(engines, samples, config, result)
        report = Report.read(result / "report.json")
        if config.keep_stages:
            work.forget("freeze")
            (result / "stages").mkdir()
            for name in ("freeze", "export", "split", "build", "stitch", "samples"):
                if (work.folder / name).exists():  # samples only where they had to be kept
                    (work.folder / name).rename(result / "stages" / name)
        result.rename(out)
    return report


def _built(
    partition: Partition,
    names: tuple[str, ...],
    samples: list[dict[str, Array]],
    config: Config,
    *,
    work: Work,
    clock: _Clock,
) -> tuple[StitchedGraph, Verification]:
    """The stitched model, and what its verification said.

    With `precision="auto"` engines may be further from TensorFlow than the trials that they were chosen by: then the
    region that adds most to the error goes back to fp32, as often as it takes.

    Raises:
        VerifyError: the model differs from TensorFlow.
    """
    stage = partial(_stage, work, clock)
    options = engine_options(config, names, samples)
    while True:
        engines = stage("build", EngineSet, partial(build, partition, options=options), *_building(options, config))
        stitching = partial(stitch, engines, on_failure=config.on_failure, build_at_runtime=config.build_at_runtime)
        stitched = stage("stitch", StitchedGraph, stitching, config.on_failure, config.build_at_runtime)
        if not config.verify:
            return stitched, Verification((), (), 0, {}, None)
        with clock.stage("verify"):
            check = verify(
                stitched.saved_model, partition.frozen, samples, tolerance=config.tolerance, metric=config.error_metric
            )
        if check.passed:
            return stitched, check
        choices = demote(engines.choices)
        if check.fallbacks or choices is None:
            raise VerifyError(
                f"the stitched model differs from TensorFlow: {explain(check)}", "--max-error, or another --precision"
            )
        log.warning("verify: %s; a region goes back to fp32", explain(check))
        table = _kept_table(engines, work.folder)
        options = replace(options, auto=replace(options.auto, choices=choices), calibration=table)


def _building(options: EngineOptions, config: Config) -> tuple[object, ...]:
    """What building depends on besides the partition, whose key has the samples' values in it."""
    table = options.calibration.table
    plain = replace(
        options,
        calibration=replace(options.calibration, samples=None, table=None),
        auto=AutoOptions(choices=options.auto.choices),
    )
    searching = (config.error_metric, config.tolerance) if options.precision == "auto" else ()
    return plain, None if table is None else storage.sha256_file(Path(table)), *searching


def _kept_table(engines: EngineSet, work: Path) -> CalibrationOptions:
    """The ranges that a build has found, to build again with."""
    if not (engines.folder / TABLE).exists():
        return CalibrationOptions()
    if not (work / TABLE).exists():
        storage.link_or_copy(engines.folder / TABLE, work / TABLE)
    return CalibrationOptions(table=work / TABLE)


def samples_of(frozen: FrozenGraph, config: Config) -> list[dict[str, Array]]:
    """What a model is compared on: the configuration's samples, and sizes besides where axes are open.

    Raises:
        SplitError: shapes or samples don't fit the model.
    """
    given = read_samples(frozen, config.samples)
    return verification_samples(frozen, size_ranges(frozen, config.shapes, given, config.max_profiles), given)


def _stage(
    work: Work, clock: _Clock, name: str, kind: type[Artifact], make: Callable[[Path], Artifact], *facts: object
) -> Artifact:
    """One stage, unless an earlier run has finished it. `facts` are as for `Work.taken_over`."""
    found = work.taken_over(name, kind, *facts)
    if found is not None:
        artifact, seconds = found
        clock.taken_over(name, seconds)
        return artifact
    with clock.stage(name):
        artifact = make(work.folder / name)
    work.add(name, clock.seconds[name])
    return artifact


def opening(config: Config) -> tuple[object, ...]:
    """What freezing depends on besides the model."""
    return config.signature, config.tags, config.inputs, config.outputs, config.constants


def with_known_sizes(model: object, config: Config) -> Config:
    """The configuration with the sizes that a model of `pretrained:NAME` needs, where it gives none."""
    return replace(config, shapes=config.shapes or known_sizes(model))


def freeze_model(model: object, out: Path, config: Config) -> FrozenGraph:
    """Freeze what a MODEL argument means; `pretrained:NAME` is fetched.

    Args:
        model: as for `convert`.
        out: folder to make.

    Raises:
        ModelError: no such model, or it can't be fetched or read.
        FreezeError: its graph can't be frozen.
        ArtifactError: `out` exists or can't be written.
    """
    op_libraries.load(config.op_libraries)
    resolved = resolve(model)
    return freeze(
        resolved.source,
        out,
        signature=config.signature,
        tags=config.tags,
        inputs=config.inputs or resolved.inputs,
        outputs=config.outputs or resolved.outputs,
        constants={**resolved.constants, **config.constants},
    )


class _Clock:
    """Seconds by stage, of all its runs together."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with self._progress.stage(name):
            yield
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        log.info("%s: %.1f s", name, seconds)

    def taken_over(self, name: str, seconds: float) -> None:
        self.seconds[name] = seconds
        self._progress.taken_over(name, seconds)


def _name(model: object) -> str:
    return str(model) if isinstance(model, (str, Path)) else str(getattr(model, "name", type(model).__name__))


def _with_verdicts(engines: EngineSet, check: Verification) -> EngineSet:
    """Mark the engines that verification ran: those for the device that this machine has."""
    if not check.engines_run:
        return engines
    device = "gpu" if gpu_count() else "cpu"
    marked = tuple(
        replace(engine, verified="executed") if backends.get(engine.fingerprint.backend).device == device else engine
        for engine in engines.engines
    )
    return replace(engines, engines=marked)


def _draw(engines: EngineSet, samples: list[dict[str, Array]], config: Config, folder: Path) -> None:
    """The page, and event files where they are wanted. Work is estimated for the smallest sample."""
    graph = Graph(engines.partition.frozen)
    smallest = min(samples, key=lambda sample: sum(array.size for array in sample.values()))
    make_picture(graph, {name: array.shape for name, array in smallest.items()}).write(folder / PICTURE)
    write_page(folder)
    if config.tensorboard:
        write_graphs(graph, engines, folder / "tensorboard", config.on_failure)


def _arrange(stitched: StitchedGraph, engines: EngineSet, folder: Path) -> None:
    stitched.saved_model.rename(folder / "saved_model")
    graph_def = stitched.folder / "model.pb"
    if graph_def.exists():
        graph_def.rename(folder / "model.pb")
    if (engines.folder / TABLE).exists():
        storage.link_or_copy(engines.folder / TABLE, folder / TABLE)
    for region in engines.partition.regions:
        target = folder / "regions" / region.name
        target.mkdir(parents=True)
        for file in region.model.parent.iterdir():
            storage.link_or_copy(file, target / file.name)
        for engine in engines.engines:
            if engine.region == region.name:
                for file in (engine.file, engine.file.with_suffix(".json"), *engine.beside):
                    if not (target / file.name).exists():  # the model's weights may be the plan's
                        storage.link_or_copy(file, target / file.name)
