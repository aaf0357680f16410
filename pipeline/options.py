"""The options of the command line, in the groups that commands share."""

from __future__ import annotations

import argparse
from pathlib import Path


def model_options(parser: argparse.ArgumentParser) -> None:
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


def candidate_options(parser: argparse.ArgumentParser) -> None:
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


def shape_option(parser: argparse.ArgumentParser) -> None:
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


def split_options(parser: argparse.ArgumentParser) -> None:
    candidate_options(parser)
    shape_option(parser)
    parser.add_argument(
        "--max-profiles", type=int, metavar="N", help="most shape profiles made of the samples (default: 3)"
    )


def library_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", default="auto", help="tensorrt, tensorrt_rtx, onnxruntime (default: auto)")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="for one support query or build")


def build_options(parser: argparse.ArgumentParser) -> None:
    library_options(parser)
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


def precision_option(parser: argparse.ArgumentParser) -> None:
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


def stitch_options(parser: argparse.ArgumentParser) -> None:
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


def verify_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-error", type=float, metavar="E", help="largest error (default: by precision and metric)")
    parser.add_argument(
        "--error-metric",
        choices=("relative", "cosine", "top1"),
        help="what an error is: max|a-b| / max|b|, 1 - cosine, share of other top-1 answers (default: relative)",
    )


def bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", metavar="N,N,…", help="sizes of the open first axis (default: as converted)")
    parser.add_argument("--peers", default="stitched,tensorflow,xla", help="what is measured (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds that medians are taken over (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=0.25, help="least length of a round (default: %(default)s)")
    parser.add_argument("--model", help="the original model, where it is not where it was when it was converted")
