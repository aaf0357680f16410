"""What each subcommand of the command line does."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline import doctor
from pipeline.bench.peer import Original
from pipeline.bench.records import BENCH
from pipeline.bench.run import BenchOptions, bench
from pipeline.bench.table import table
from pipeline.config import Config, constant, engine_options, numbers, shape_range, split_options
from pipeline.inspection import inspect_model, inspect_path
from pipeline.page import PAGE, PICTURE, write_page
from pipeline.progress import ConsoleProgress
from pipeline.reasons import by_layer
from pipeline.reasons import lines as reason_lines
from pipeline.report import Report
from pipeline.run import Progress, Quiet, convert, freeze_model, samples_of
from pipeline.timing import Effort
from pipeline.verify import explain, verify_folder
from stages import backends, op_libraries, recordjson, storage
from stages.artifacts import EngineSet, FrozenGraph, LeftOp, OnnxExport, Partition
from stages.build import build
from stages.errors import ConversionError, VerifyError
from stages.export import export
from stages.sizes import shape_text
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
        "inspect": _inspect,
        "doctor": _doctor,
        "report": _report,
        "bench": _bench,
    }
    if options.command not in ("convert", "freeze", "inspect", "bench"):  # these open a model, and do it themselves
        op_libraries.load(options.op_library)
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
        calibration_table=options.calibration_table,
        keep_in_tf=tuple(options.keep_in_tf),
        min_region=options.min_region,
        max_error=options.max_error,
        signature=options.signature,
        tags=_list(options.tags),
        inputs=_list(options.inputs),
        outputs=_list(options.outputs),
        constants=dict(map(constant, options.constant)),
        op_libraries=tuple(options.op_library),
        on_failure=options.on_failure,
        build_at_runtime=options.build_at_runtime,
        fixed_sizes=not options.no_fixed_sizes,
        workspace_mib=options.workspace_mib,
        capabilities=tuple(options.capability),
        cache=not options.no_cache,
        verify=not options.no_verify,
        keep_stages=options.keep_stages,
        resume=not options.no_resume,
        tensorboard=options.tensorboard,
    )
    if options.error_metric is not None:
        config = replace(config, error_metric=options.error_metric)
    if options.calibration is not None:
        config = replace(config, calibration=options.calibration)
    if options.int8_error is not None:
        config = replace(config, int8_error=options.int8_error)
    if options.max_profiles is not None:
        config = replace(config, max_profiles=options.max_profiles)
    if options.time_limit is not None:
        config = replace(config, time_limit_seconds=options.time_limit)
    return config


def _freeze(options: argparse.Namespace) -> None:
    with _progress(options).stage("freeze"):
        frozen = freeze_model(options.model, options.out, _config(options))
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
    _tell(options, exported, lines + reason_lines(exported.left))


def _split(options: argparse.Namespace) -> None:
    chosen = split_options(_config(options), backends.choose(options.backend)[0])
    with _progress(options).stage("split"):
        partition = split(storage.load(OnnxExport, options.folder), options.out, options=chosen)
    inside = sum(len(region.ops) for region in partition.regions)
    lines = [f"{inside} of {partition.ops_total} ops in {len(partition.regions)} regions"]
    lines += [f"{region.name}: {len(region.ops)} ops" for region in partition.regions]
    _tell(options, partition, lines + reason_lines(partition.left))


def _build(options: argparse.Namespace) -> None:
    config, partition = _config(options), storage.load(Partition, options.folder)
    samples = samples_of(partition.frozen, config) if config.precision == "auto" else ()
    chosen = engine_options(config, backends.choose(options.backend), samples)
    with _progress(options).stage("build"):
        engines = build(partition, options.out, options=chosen)
    lines = [f"{len(engines.engines)} engines for {len(engines.partition.regions)} regions"]
    lines += [
        f"{e.region}: {e.fingerprint.backend} {e.fingerprint.precision}, {e.bytes / 1e6:.1f} MB"
        for e in engines.engines
    ]
    _tell(options, engines, lines + [f"{region.region}: {region.reason}" for region in engines.failed])


def _stitch(options: argparse.Namespace) -> None:
    with _progress(options).stage("stitch"):
        stitched = stitch(
            storage.load(EngineSet, options.folder),
            options.out,
            on_failure=options.on_failure,
            build_at_runtime=options.build_at_runtime,
        )
    _tell(options, stitched, [f"written to {stitched.saved_model}"])


def _verify(options: argparse.Namespace) -> None:
    config = _config(options)
    with _progress(options).stage("verify"):
        check = verify_folder(
            options.folder,
            shapes=config.shapes,
            samples=config.samples,
            max_error=config.max_error,
            metric=options.error_metric,
        )
    worst = max((output.measured for output in check.outputs), default=0.0)
    _tell(options, check, [f"largest {check.metric} error {worst:.1e}, {check.engines_run} engine calls"])
    if not check.passed:
        raise VerifyError(explain(check), "convert the model on this machine, or for this machine's GPU")


def _bench(options: argparse.Namespace) -> None:
    config = _config(options)
    named = options.model or (None if _is_converted(options.target) else options.target)
    if named is None and any((options.tags, options.inputs, options.outputs, options.constant)):
        named = Report.read(Path(options.target) / "report.json").model
    original = named and Original(
        named, config.signature, config.tags, config.inputs, config.outputs, dict(map(constant, options.constant))
    )
    chosen = BenchOptions(
        peers=_list(options.peers) or (),
        batches=numbers("--batch", options.batch),
        shapes=config.shapes,
        samples=config.samples,
        effort=Effort(options.rounds, options.seconds),
        original=original or None,
        op_libraries=config.op_libraries,
    )
    progress = _progress(options)
    with contextlib.ExitStack() as stack:
        folder = Path(options.target)
        if not _is_converted(options.target):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "out"
            convert(options.target, folder, config, progress=progress)
        op_libraries.load(config.op_libraries)
        result = bench(folder, chosen, progress=progress)
        if (folder / PICTURE).exists():
            write_page(folder)
    if options.json:
        print(result.to_json(), end="")
    elif not options.quiet:
        print(table(result, colour=sys.stdout.isatty()), end="")
        if _is_converted(options.target):
            print(f"written to {folder / BENCH} and {folder / PAGE}")


def _is_converted(target: str) -> bool:
    return (Path(target) / "report.json").exists()


def _inspect(options: argparse.Namespace) -> None:
    known = inspect_path(Path(options.target))
    if known is not None:
        lines = _outline(known)
        if options.verbose and known["kind"] == "conversion":
            lines += _by_layer(Report.read(Path(options.target) / "report.json").left_in_tensorflow)
        print(json.dumps(known, indent=1) if options.json else "\n".join(lines))
        return
    found = inspect_model(options.target, _config(options), progress=_progress(options))
    share = found.ops_in_regions / found.ops_total if found.ops_total else 0.0
    lines = [f"input  {tensor.name}: {tensor.dtype} {shape_text(tensor.shape)}" for tensor in found.inputs]
    lines += [f"output {tensor.name}: {tensor.dtype} {shape_text(tensor.shape)}" for tensor in found.outputs]
    lines.append(
        f"{found.ops_in_regions} of {found.ops_total} ops ({share:.1%}) would be in "
        f"{len(found.regions)} engine{'s' * (len(found.regions) != 1)}"
    )
    for region in found.regions:
        most = ", ".join(f"{count} {op}" for op, count in list(region.onnx_ops.items())[:5])
        lines.append(f"  {region.name}: {len(region.ops)} ops; ONNX: {most}")
    lines += reason_lines(found.left_in_tensorflow)
    if options.verbose:
        lines += _by_layer(found.left_in_tensorflow)
    _tell(options, found, lines)


def _by_layer(left: Iterable[LeftOp]) -> list[str]:
    """Every op that stays, by layer, with its reason."""
    lines = []
    for layer, ops in by_layer(left).items():
        lines += [f"{layer}:"] + [f"  {op.node} ({op.op}): {op.reason.value}: {op.detail}" for op in ops]
    return lines


def _doctor(options: argparse.Namespace) -> None:
    findings = doctor.examine()
    if options.json:
        print(json.dumps([recordjson.encode(finding, Path()) for finding in findings], indent=1))
    elif not options.quiet:
        for finding in findings:
            print(f"{finding.state.value:<8}{finding.subject}: {finding.detail}")
            if finding.remedy:
                print(f"        try: {finding.remedy}")
    problems = [finding for finding in findings if finding.state is doctor.State.PROBLEM]
    if problems:
        names = ", ".join(dict.fromkeys(finding.subject for finding in problems))
        raise ConversionError(f"doctor: conversions don't work here: {names}", "; ".join(f.remedy for f in problems))


def _outline(values: Mapping[str, object], indent: str = "") -> list[str]:
    """Nested values as indented lines."""
    lines = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *_outline(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{indent}{name}:")
            for entry in value:
                lines += _outline(entry, indent + "  ") if isinstance(entry, Mapping) else [f"{indent}  {entry}"]
        else:
            lines.append(f"{indent}{name}: {value}")
    return lines


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
