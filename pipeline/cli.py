"""The command line: `graftrt` and `python -m pipeline`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline import completion, configfile
from pipeline import options as groups
from pipeline.process import import_tensorflow_quietly, interruptible, set_up_logging
from stages.errors import ConversionError

MODEL_HELP = (
    "SavedModel folder, .keras, .h5 or frozen .pb file, TensorFlow.js model.json, "
    ".meta file or folder of a TensorFlow 1 checkpoint, keras:NAME (keras.applications, seeded random weights), "
    "or pretrained:NAME"
)
CONFIG_HELP = "read options from this file; those given here count more"
EXIT_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 when done and verified, 1 on a stated failure; wrong usage exits with 2."""
    options = None
    try:
        options = parse(arguments)
        if options.command == "completion":
            print(completion.script(*_parser(), options.shell))
            return 0
        set_up_logging(options.verbose, options.quiet)
        # TensorFlow's C++ log is not a user's business; it reads this when it is imported.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with interruptible():
            if not options.verbose:
                import_tensorflow_quietly()
            from pipeline import commands

            return commands.run(options)
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        if kept := _kept(options):
            print(f"  kept: {kept}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"interrupted; {_kept(options) or 'nothing was left behind'}", file=sys.stderr)
        return EXIT_FAILED


def _kept(options: argparse.Namespace | None) -> str:
    """How to go on with a conversion that did not end; empty if nothing of it is kept."""
    if options is None or options.command != "convert":
        return ""
    from pipeline import resume

    stages = resume.finished(options.out)
    folder = resume.partial_folder(options.out)
    return f"run the same command again to go on after {stages[-1]!r}, or remove {folder}" if stages else ""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says, else the file of `--config`, else the defaults.

    Raises:
        ConversionError: the file is wrong.
        SystemExit: wrong usage, or only help was wanted.
    """
    return configfile.parse(*_parser(), arguments)


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser of everything, and those of the commands by name."""
    parser = argparse.ArgumentParser(prog="graftrt", description="Grafts TensorRT engines into TensorFlow models.")
    parser.add_argument("--version", action=ShowVersion, nargs=0, help="print GraftRT's version and exit")
    common, config = _common()
    # What a command has no option for is as if the option were not given.
    common.set_defaults(
        precision="fp32",
        calibration=None,
        calibration_table=None,
        int8_error=None,
        backend="auto",
        on_failure="native",
        shape=[],
        keep_in_tf=[],
        capability=[],
        samples=None,
        constant=[],
    )
    common.set_defaults(
        max_profiles=None, max_error=None, signature=None, tags=None, inputs=None, outputs=None, workspace_mib=None
    )
    common.set_defaults(
        min_region=None, time_limit=None, no_cache=False, no_verify=False, keep_stages=False, no_resume=False
    )
    common.set_defaults(tensorboard=False, build_at_runtime=False, no_fixed_sizes=False, error_metric=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    convert = add("convert", "Convert a model: all stages, then verify and report.")
    convert.add_argument("model", help=MODEL_HELP)
    convert.add_argument("out", type=Path, help="folder to write; must not exist")
    for group in (
        groups.model_options,
        groups.split_options,
        groups.build_options,
        groups.precision_option,
        groups.stitch_options,
        groups.verify_options,
    ):
        group(convert)
    convert.add_argument("--no-verify", action="store_true", help="do not run the stitched model")
    convert.add_argument("--keep-stages", action="store_true", help="keep every stage's artifact in OUT/stages")
    convert.add_argument("--no-resume", action="store_true", help="start anew, and keep nothing if it is interrupted")
    convert.add_argument("--tensorboard", action="store_true", help="write both graphs to OUT/tensorboard")

    freeze = add("freeze", "Stage 1: a model without variables.")
    freeze.add_argument("model", help=MODEL_HELP)
    _folders(freeze, None)
    groups.model_options(freeze)
    groups.candidate_options(_stage(add, "export", "Stage 2: the largest candidate regions as ONNX.", "freeze"))
    split = _stage(add, "split", "Stage 3: the regions that TensorRT takes. Stop here for a dry run.", "export")
    groups.split_options(split)
    groups.build_options(split)
    build = _stage(add, "build", "Stage 4: a plan for every region.", "split")
    groups.build_options(build)
    groups.precision_option(build)
    groups.verify_options(build)
    groups.shape_option(build)
    groups.stitch_options(_stage(add, "stitch", "Stage 5: the model with engines in it.", "build"))
    _add_lookers(add)
    shell = add("completion", "Print a script that lets a shell complete commands, options and paths.")
    shell.add_argument("shell", choices=completion.SHELLS)
    config.commands = commands.choices
    return parser, commands.choices


def _add_lookers(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Commands that look at what there is."""
    inspect = add(
        "inspect", "Say what would be converted, without building; or what lies in a folder or file of GraftRT's."
    )
    inspect.add_argument(
        "target",
        help=f"{MODEL_HELP}; or a folder that a command wrote, a region's .onnx, a .plan; -v names every op that stays in "
        "TensorFlow, with the reason",
    )
    groups.model_options(inspect)
    groups.candidate_options(inspect)
    groups.library_options(inspect)
    add("doctor", "Say what is installed, what works on this machine, and what to do about the rest.")
    verify = add("verify", "Compare a stitched model's engines with TensorFlow on this machine.")
    verify.add_argument("folder", type=Path, help="folder that convert or stitch wrote")
    groups.verify_options(verify)
    groups.shape_option(verify)
    bench = add("bench", "Measure a stitched model beside plain TensorFlow and XLA, on this machine.")
    bench.add_argument("target", help=f"folder that convert wrote; or a model, converted for this alone: {MODEL_HELP}")
    groups.bench_options(bench)
    groups.model_options(bench)
    groups.shape_option(bench)
    groups.library_options(bench)
    groups.precision_option(bench)
    report = add("report", "Write report.html again: after a verify elsewhere, or with a GPU for the engines' layers.")
    report.add_argument("folder", type=Path, help="folder that convert wrote")


def _common() -> tuple[argparse.ArgumentParser, configfile.ReadFile]:
    """What every command has, and of that what reads a file."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice for debugging")
    common.add_argument("-q", "--quiet", action="store_true", help="say only errors")
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    config = common.add_argument("--config", action=configfile.ReadFile, metavar="TOML", help=CONFIG_HELP)
    common.add_argument(
        "--op-library",
        action="append",
        default=[],
        type=Path,
        metavar="SO",
        help="shared library with custom ops that the model uses; may be repeated",
    )
    assert isinstance(config, configfile.ReadFile)
    return common, config


class ShowVersion(argparse.Action):
    """As argparse's own, but what is installed is asked only when somebody wants to know."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from importlib.metadata import version

        print(f"graftrt {version('graftrt')}")
        parser.exit()


def _stage(
    add: Callable[[str, str], argparse.ArgumentParser], name: str, text: str, before: str
) -> argparse.ArgumentParser:
    parser = add(name, text)
    _folders(parser, before)
    return parser


def _folders(parser: argparse.ArgumentParser, before: str | None) -> None:
    if before:
        parser.add_argument("folder", type=Path, help=f"folder that {before} wrote")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")


if __name__ == "__main__":
    sys.exit(main())
