"""The command line: `graftrt` and `python -m pipeline`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from stages.errors import BackendError, ConversionError

MODEL_HELP = (
    "SavedModel folder, .keras, .h5 or frozen .pb file, TensorFlow.js model.json, "
    ".meta file or folder of a TensorFlow 1 checkpoint, keras:NAME (keras.applications, seeded random weights), "
    "or pretrained:NAME"
)
EXIT_FAILED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 when done and verified, 1 on a stated failure; wrong usage exits with 2."""
    options = _parser().parse_args(arguments)
    _set_up_logging(options.verbose, options.quiet)
    # TensorFlow's C++ log is not a user's business; it reads this when it is imported.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with interruptible():
            if not options.verbose:
                import_tensorflow_quietly()
            from pipeline import commands

            return commands.run(options)
    except ConversionError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="graftrt", description="Grafts TensorRT engines into TensorFlow models.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="count", default=0, help="say more; twice for debugging")
    common.add_argument("-q", "--quiet", action="store_true", help="say only errors")
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument(
        "--op-library",
        action="append",
        default=[],
        type=Path,
        metavar="SO",
        help="shared library with custom ops that the model uses; may be repeated",
    )
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
    common.set_defaults(min_region=None, time_limit=None, no_cache=False, no_verify=False, keep_stages=False)
    common.set_defaults(tensorboard=False, build_at_runtime=False, no_fixed_sizes=False, error_metric=None)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[common])

    convert = add("convert", "Convert a model: all stages, then verify and report.")
    convert.add_argument("model", help=MODEL_HELP)
    convert.add_argument("out", type=Path, help="folder to write; must not exist")
    for group in (_model_options, _split_options, _build_options, _precision_option, _stitch_options, _verify_options):
        group(convert)
    convert.add_argument("--no-verify", action="store_true", help="do not run the stitched model")
    convert.add_argument("--keep-stages", action="store_true", help="keep every stage's artifact in OUT/stages")
    convert.add_argument("--tensorboard", action="store_true", help="write both graphs to OUT/tensorboard")

    freeze = add("freeze", "Stage 1: a model without variables.")
    freeze.add_argument("model", help=MODEL_HELP)
    _folders(freeze, None)
    _model_options(freeze)
    _candidate_options(_stage(add, "export", "Stage 2: the largest candidate regions as ONNX.", "freeze"))
    split = _stage(add, "split", "Stage 3: the regions that TensorRT takes. Stop here for a dry run.", "export")
    _split_options(split)
    _build_options(split)
    build = _stage(add, "build", "Stage 4: a plan for every region.", "split")
    _build_options(build)
    _precision_option(build)
    _verify_options(build)
    _shape_option(build)
    _stitch_options(_stage(add, "stitch", "Stage 5: the model with engines in it.", "build"))
    inspect = add(
        "inspect", "Say what would be converted, without building; or what lies in a folder or file of GraftRT's."
    )
    inspect.add_argument(
        "target",
        help=f"{MODEL_HELP}; or a folder that a command wrote, a region's .onnx, a .plan; -v names every op that stays in "
        "TensorFlow, with the reason",
    )
    _model_options(inspect)
    _candidate_options(inspect)
    _library_options(inspect)
    add("doctor", "Say what is installed, what works on this machine, and what to do about the rest.")
    verify = add("verify", "Compare a stitched model's engines with TensorFlow on this machine.")
    verify.add_argument("folder", type=Path, help="folder that convert or stitch wrote")
    _verify_options(verify)
    _shape_option(verify)
    bench = add("bench", "Measure a stitched model beside plain TensorFlow and XLA, on this machine.")
    bench.add_argument("target", help=f"folder that convert wrote; or a model, converted for this alone: {MODEL_HELP}")
    _bench_options(bench)
    _model_options(bench)
    _shape_option(bench)
    _library_options(bench)
    _precision_option(bench)
    report = add("report", "Write report.html again: after a verify elsewhere, or with a GPU for the engines' layers.")
    report.add_argument("folder", type=Path, help="folder that convert wrote")
    return parser


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


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--signature", help="signature of a SavedModel (default: serving_default, or the only one)")
    parser.add_argument("--tags", help="tags of a SavedModel, with commas between (default: serve, or the only ones)")
    parser.add_argument("--inputs", help="input tensors of a .pb or checkpoint, as a:0,b:0 (default: guessed)")
    parser.add_argument("--outputs", help="output tensors of a .pb or checkpoint, as c:0 (default: guessed)")
    parser.add_argument(
        "--constant",
        action="append",
        default=[],
        metavar="INPUT=VALUE",
        help="an input that always has this value, as is_training=false; it is no input any more; may be repeated",
    )


def _candidate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keep-in-tf",
        action="append",
        default=[],
        metavar="OP_TYPE|NODE",
        help="leave these ops in TensorFlow: an op type, a node or a pattern (decoder/*); may be repeated",
    )
    parser.add_argument(
        "--min-region",
        type=int,
        metavar="N",
        help="fewest computing ops that make an engine (default: as many as pay for its boundary)",
    )


def _shape_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=MIN,OPT,MAX",
        help="sizes of an input, as x=1x224x224x3,8x224x224x3,32x224x224x3; repeat for more inputs or profiles",
    )
    parser.add_argument(
        "--samples",
        type=Path,
        action="append",
        metavar="NPZ",
        help="real inputs: a file of numpy.savez with an array for each input, under the name that `inspect` gives; or a "
        "folder of such files; may be repeated",
    )


def _split_options(parser: argparse.ArgumentParser) -> None:
    _candidate_options(parser)
    _shape_option(parser)
    parser.add_argument(
        "--max-profiles", type=int, metavar="N", help="most shape profiles made of the samples (default: 3)"
    )


def _library_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="auto", help="tensorrt, tensorrt_rtx, onnxruntime (default: auto)")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="for one support query or build")


def _build_options(parser: argparse.ArgumentParser) -> None:
    _library_options(parser)
    parser.add_argument("--no-cache", action="store_true", help="neither use nor fill the engine cache")
    parser.add_argument(
        "--no-fixed-sizes",
        action="store_true",
        help="no faster kernels for the sizes that --shape names: builds sooner",
    )
    parser.add_argument("--workspace-mib", type=int, metavar="MIB", help="builder memory")
    parser.add_argument(
        "--capability", action="append", default=[], metavar="X.Y", help="compute capability to build for"
    )


def _precision_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "auto"),
        help="default: fp32; auto: for every layer the fastest that --max-error allows",
    )
    parser.add_argument(
        "--calibration",
        choices=("entropy", "minmax", "percentile", "mse"),
        help="how int8 takes ranges from the samples (default: percentile)",
    )
    parser.add_argument(
        "--calibration-table",
        type=Path,
        metavar="JSON",
        help="calibration.json of an earlier conversion of this model, to take ranges from instead of samples",
    )
    parser.add_argument(
        "--int8-error",
        type=float,
        metavar="E",
        help="how far a region may be off in int8 (rms over standard deviation) before parts stay fp16 (default: 0.015)",
    )


def _stitch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-failure",
        default="native",
        choices=("native", "fail"),
        help="when no engine can run: TensorFlow's ops (counted and logged), or an error",
    )
    parser.add_argument(
        "--build-at-runtime",
        action="store_true",
        help="on a GPU, build engines for other sizes in the background while the model serves",
    )


def _verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-error", type=float, metavar="E", help="largest error (default: by precision and metric)")
    parser.add_argument(
        "--error-metric",
        choices=("relative", "cosine", "top1"),
        help="what an error is: max|a-b| / max|b|, 1 - cosine, share of other top-1 answers (default: relative)",
    )


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", metavar="N,N,…", help="sizes of the open first axis (default: as converted)")
    parser.add_argument("--peers", default="stitched,tensorflow,xla", help="what is measured (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds that medians are taken over (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=0.25, help="least length of a round (default: %(default)s)")
    parser.add_argument("--model", help="the original model, where it is not where it was when it was converted")


def import_tensorflow_quietly() -> None:
    """TensorFlow's libraries write to standard error before their log level is read. What they say is shown if the import
    fails, and dropped else."""
    # oneDNN's allocator never gives memory back: a large model's weights would stay when their last tensor is gone.
    os.environ.setdefault("TF_ONEDNN_USE_SYSTEM_ALLOCATOR", "1")
    with tempfile.TemporaryFile() as words:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(words.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except Exception as error:
            words.seek(0)
            said = words.read().decode(errors="replace")
            raise BackendError(f"tensorflow: {error}" + f"\n{said}".rstrip(), "pip install tensorflow") from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM (`timeout`, a container that stops) interrupt as Ctrl-C does, and lose no Ctrl-C: Python drops one that
    falls into a destructor, of which TensorFlow has many."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def deliver_again(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
            again.daemon = True
            again.start()
        else:
            hook(unraisable)

    hook, sys.unraisablehook = sys.unraisablehook, deliver_again
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook


def _set_up_logging(verbose: int, quiet: bool) -> None:
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    if not verbose and not sys.warnoptions:
        warnings.simplefilter("ignore")  # Python's warnings are for those who write the code that is running
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    # absl and Keras advise those who train; nobody does here.
    logging.getLogger("absl").setLevel(logging.ERROR)
    for package in ("pipeline", "stages"):
        logging.getLogger(package).setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
