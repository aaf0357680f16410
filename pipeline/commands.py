"""What each subcommand of the command line does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.config import Config, engine_options, shape_range, split_options
from pipeline.page import write_page
from pipeline.progress import ConsoleProgress
from pipeline.report import grouped
from pipeline.run import Progress, Quiet, convert, resolve
from pipeline.verify import explain, verify_folder
from stages import backends, recordjson, storage
from stages.artifacts import EngineSet, FrozenGraph, OnnxExport, Partition
from stages.build import build
from stages.errors import VerifyError
from stages.export import export
from stages.freeze import freeze
from stages.split import split
from stages.stitch import stitch


def run(options: argparse.Namespace) -> int:
    """Run the command that was parsed; returns the exit code.

    Raises:
        ConversionError: a stated failure.
    """
    commands: dict[str, Callable[[argparse.Namespace], None]] = {
        "convert": _convert,
        "freeze": _freeze,
        "export": _export,
        "split": _split,
        "build": _build,
        "stitch": _stitch,
        "verify": _verify,
        "report": _report,
    }
    commands[options.command](options)
    return 0


def _convert(options: argparse.Namespace) -> None:
    report = convert(options.model, options.out, _config(options), progress=_progress(options))
    if options.json:
        print((options.out / "report.json").read_text(), end="")
    elif not options.quiet:
        print(report.summary())
        print(f"written to {options.out}")


def _config(options: argparse.Namespace) -> Config:
    """What the options say, with defaults for those that the command does not have.

    Raises:
        ConversionError: an option has no sensible value.
    """
    config = Config(
        precision=options.precision,
        backend=options.backend,
        shapes=tuple(map(shape_range, options.shape)),
        samples=options.samples,
        keep_in_tf=tuple(options.keep_in_tf),
        max_error=options.max_error,
        signature=options.signature,
        tags=_list(options.tags),
        inputs=_list(options.inputs),
        outputs=_list(options.outputs),
        on_failure=options.on_failure,
        workspace_mib=options.workspace_mib,
        capabilities=tuple(options.capability),
        cache=not options.no_cache,
        verify=not options.no_verify,
        keep_stages=options.keep_stages,
        tensorboard=options.tensorboard,
    )
    if options.min_region is not None:
        config = replace(config, min_region=options.min_region)
    if options.time_limit is not None:
        config = replace(config, time_limit_seconds=options.time_limit)
    return config


def _freeze(options: argparse.Namespace) -> None:
    source, inputs, outputs = resolve(options.model)
    with _progress(options).stage("freeze"):
        frozen = freeze(
            source,
            options.out,
            signature=options.signature,
            tags=_list(options.tags),
            inputs=_list(options.inputs) or inputs,
            outputs=_list(options.outputs) or outputs,
        )
    names = ", ".join(frozen.input_names), ", ".join(frozen.output_names)
    _tell(options, frozen, [f"inputs: {names[0]}", f"outputs: {names[1]}"])


def _export(options: argparse.Namespace) -> None:
    config = _config(options)
    with _progress(options).stage("export"):
        exported = export(
            storage.load(FrozenGraph, options.folder),
            options.out,
            keep_in_tf=config.keep_in_tf,
            min_region=config.min_region,
        )
    lines = [f"{len(exported.candidates)} candidate regions"]
    lines += [f"{region.name}: {len(region.ops)} ops" for region in exported.candidates]
    _tell(options, exported, lines + [f"left in TensorFlow: {line}" for line in grouped(exported.left)])


def _split(options: argparse.Namespace) -> None:
    chosen = split_options(_config(options), backends.choose(options.backend)[0])
    with _progress(options).stage("split"):
        partition = split(storage.load(OnnxExport, options.folder), options.out, options=chosen)
    inside = sum(len(region.ops) for region in partition.regions)
    lines = [f"{inside} of {partition.ops_total} ops in {len(partition.regions)} regions"]
    lines += [f"{region.name}: {len(region.ops)} ops" for region in partition.regions]
    _tell(options, partition, lines + [f"left in TensorFlow: {line}" for line in grouped(partition.left)])


def _build(options: argparse.Namespace) -> None:
    chosen = engine_options(_config(options), backends.choose(options.backend))
    with _progress(options).stage("build"):
        engines = build(storage.load(Partition, options.folder), options.out, options=chosen)
    lines = [f"{len(engines.engines)} engines for {len(engines.partition.regions)} regions"]
    lines += [
        f"{e.region}: {e.fingerprint.backend} {e.fingerprint.precision}, {e.bytes / 1e6:.1f} MB"
        for e in engines.engines
    ]
    _tell(options, engines, lines + [f"{region.region}: {region.reason}" for region in engines.failed])


def _stitch(options: argparse.Namespace) -> None:
    with _progress(options).stage("stitch"):
        stitched = stitch(storage.load(EngineSet, options.folder), options.out, on_failure=options.on_failure)
    _tell(options, stitched, [f"written to {stitched.saved_model}"])


def _verify(options: argparse.Namespace) -> None:
    config = _config(options)
    with _progress(options).stage("verify"):
        check = verify_folder(options.folder, shapes=config.shapes, samples=config.samples, max_error=config.max_error)
    worst = max((output.max_rel_error for output in check.outputs), default=0.0)
    _tell(options, check, [f"largest relative error {worst:.1e}, {check.engines_run} engine calls"])
    if not check.passed:
        raise VerifyError(explain(check), "convert the model on this machine, or for this machine's GPU")


def _report(options: argparse.Namespace) -> None:
    page = write_page(options.folder)
    if not options.quiet:
        print(f"written to {page}")


def _tell(options: argparse.Namespace, record: object, lines: list[str]) -> None:
    if options.json:
        print(json.dumps(recordjson.encode(record, getattr(record, "folder", Path())), indent=1))
    elif not options.quiet:
        print("\n".join(lines))


def _progress(options: argparse.Namespace) -> Progress:
    return Quiet() if options.quiet else ConsoleProgress()


def _list(text: str | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else None
