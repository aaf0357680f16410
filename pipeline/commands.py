"""What each subcommand of the command line does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline import doctor
from pipeline.config import Config, constant, engine_options, shape_range, split_options
from pipeline.inspection import inspect_model, inspect_path
from pipeline.page import write_page
from pipeline.progress import ConsoleProgress
from pipeline.reasons import by_layer
from pipeline.reasons import lines as reason_lines
from pipeline.run import Progress, Quiet, convert, freeze_model
from pipeline.verify import explain, verify_folder
from stages import backends, op_libraries, recordjson, storage
from stages.artifacts import EngineSet, FrozenGraph, OnnxExport, Partition
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
    }
    if options.command not in ("convert", "freeze", "inspect"):  # these open a model, and do it themselves
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
        workspace_mib=options.workspace_mib,
        capabilities=tuple(options.capability),
        cache=not options.no_cache,
        verify=not options.no_verify,
        keep_stages=options.keep_stages,
        resume=not options.no_resume,
        tensorboard=options.tensorboard,
    )
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


def _inspect(options: argparse.Namespace) -> None:
    known = inspect_path(Path(options.target))
    if known is not None:
        print(json.dumps(known, indent=1) if options.json else "\n".join(_outline(known)))
        return
    found = inspect_model(options.target, _config(options), progress=_progress(options))
    share = found.ops_in_regions / found.ops_total if found.ops_total else 0.0
    lines = [f"input  {tensor.name}: {tensor.dtype} {shape_text(tensor.shape)}" for tensor in found.inputs]
    lines += [f"output {tensor.name}: {tensor.dtype} {shape_text(tensor.shape)}" for tensor in found.outputs]
    lines.append(
        f"{found.ops_in_regions} of {found.ops_total} ops ({share:.1%}) would be in {len(found.regions)} engines"
    )
    for region in found.regions:
        most = ", ".join(f"{count} {op}" for op, count in list(region.onnx_ops.items())[:5])
        lines.append(f"  {region.name}: {len(region.ops)} ops; ONNX: {most}")
    lines += reason_lines(found.left_in_tensorflow)
    if options.verbose:
        for layer, ops in by_layer(found.left_in_tensorflow).items():
            lines += [f"{layer}:"] + [f"  {op.node} ({op.op}): {op.reason.value}: {op.detail}" for op in ops]
    _tell(options, found, lines)


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
