"""The whole conversion: every stage once, from a model to a folder with a verified, stitched model."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pipeline.config import Config, engine_options, split_options
from pipeline.page import PICTURE, write_page
from pipeline.picture import make_picture
from pipeline.pretrained import resolve
from pipeline.report import Report, Verification, make_report
from pipeline.tensorboard import write_graphs
from pipeline.verify import explain, verify
from stages import backends, op_libraries, storage
from stages.artifacts import EngineSet, FrozenGraph, StitchedGraph
from stages.backends.hardware import gpu_count
from stages.build import TABLE, build
from stages.calibrating import check_options
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

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Told when a stage begins and ends."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]: ...


class Quiet:
    """Says nothing."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def convert(
    model: object, out: str | Path, config: Config | None = None, *, progress: Progress | None = None
) -> Report:
    """Convert a model and write it to `out`: `saved_model/`, `regions/`, `report.json`,
    `report.html`, `graph.json` (and `model.pb` for a `.pb`).

    Args:
        model: a path (SavedModel folder, `.keras`, `.h5`, frozen `.pb`, `.meta` of a checkpoint or its folder),
            `keras:NAME`, `pretrained:NAME`, a live Keras model or tf.Module, a tf.function with an input signature, or a
            concrete function.
        out: a folder that does not exist yet. It appears when all is done and verified, or not at all.

    Raises:
        ConversionError: one of its subclasses, by stage; VerifyError if the stitched model is not TensorFlow's equal.
    """
    config = config or Config()
    progress = progress or Quiet()
    clock = _Clock(progress)
    names = backends.choose(config.backend)
    with storage.write_folder(Path(out)) as folder:
        work = folder / "stages"
        with clock.stage("freeze"):
            frozen, config = freeze_model(model, work / "freeze", config)
        given = read_samples(frozen, config.samples, spool=work / "samples")
        config = replace(config, samples=given or None)  # an iterator gives them once
        check_options(frozen, config.precision, engine_options(config, names).calibration)
        ranges = size_ranges(frozen, config.shapes, given, config.max_profiles)
        samples = verification_samples(frozen, ranges, given)
        with clock.stage("export"):
            exported = export(frozen, work / "export", keep_in_tf=config.keep_in_tf, min_region=config.min_region)
        with clock.stage("split"):
            partition = split(exported, work / "split", options=split_options(config, names[0]))
        with clock.stage("build"):
            engines = build(partition, work / "build", options=engine_options(config, names))
        with clock.stage("stitch"):
            stitched = stitch(engines, work / "stitch", on_failure=config.on_failure)
        with clock.stage("verify"):
            check = _verified(stitched, frozen, samples, config)
        engines = _with_verdicts(engines, check)
        report = make_report(_name(model), engines, config.precision, check, clock.seconds)
        _arrange(stitched, engines, folder)
        report.write(folder / "report.json")
        _draw(engines, samples, config, folder)
        if not config.keep_stages:
            shutil.rmtree(work)
    return report


def freeze_model(model: object, out: Path, config: Config) -> tuple[FrozenGraph, Config]:
    """Freeze what a MODEL argument means; `pretrained:NAME` is fetched.

    Args:
        model: as for `convert`.
        out: folder to make.

    Returns:
        The frozen graph, and the configuration with the sizes that the model is known to need.

    Raises:
        ModelError: no such model, or it can't be fetched or read.
        FreezeError: its graph can't be frozen.
        ArtifactError: `out` exists or can't be written.
    """
    op_libraries.load(config.op_libraries)
    resolved = resolve(model)
    frozen = freeze(
        resolved.source,
        out,
        signature=config.signature,
        tags=config.tags,
        inputs=config.inputs or resolved.inputs,
        outputs=config.outputs or resolved.outputs,
        constants={**resolved.constants, **config.constants},
    )
    return frozen, replace(config, shapes=config.shapes or resolved.shapes)


class _Clock:
    """Seconds by stage."""

    def __init__(self, progress: Progress) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with self._progress.stage(name):
            yield
        self.seconds[name] = time.perf_counter() - start
        log.info("%s: %.1f s", name, self.seconds[name])


def _name(model: object) -> str:
    return str(model) if isinstance(model, (str, Path)) else str(getattr(model, "name", type(model).__name__))


def _verified(
    stitched: StitchedGraph, frozen: FrozenGraph, samples: list[dict[str, Array]], config: Config
) -> Verification:
    if not config.verify:
        return Verification((), (), 0, {}, None)
    check = verify(stitched.saved_model, frozen, samples, tolerance=config.tolerance)
    if not check.passed:
        raise VerifyError(
            f"the stitched model differs from TensorFlow: {explain(check)}", "--max-error, or another --precision"
        )
    return check


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
