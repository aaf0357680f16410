"""Everything that a conversion can be told; defaults live here and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages.artifacts import ShapeRange
from stages.autoprecision import AutoOptions
from stages.build import EngineOptions
from stages.calibrating import DEFAULT_METHOD, CalibrationOptions
from stages.compare import TOLERANCES, Array
from stages.errors import ConversionError
from stages.metrics import Metric, check_metric, default_limit
from stages.model import Scalar
from stages.precision.histogram import METHODS
from stages.precision.sensitivity import DEFAULT_ERROR
from stages.samples import Samples
from stages.sizes import DEFAULT_MAX_PROFILES
from stages.split import SplitOptions


@dataclass(frozen=True, slots=True)
class Config:
    """How to convert a model.

    Attributes:
        precision: `fp32` (IEEE, TensorRT's TF32 off), `tf32`, `fp16`, `bf16`, `int8` or `fp8`; `auto` gives every layer the
            fastest of int8 (where there are samples to find ranges on), fp16 and fp32 that `max_error` allows.
        calibration: how int8 takes ranges from the samples: `entropy`, `minmax`, `percentile` or `mse`.
        calibration_table: the `calibration.json` of an earlier conversion of the same model, to take ranges from instead.
        int8_error: how far a region's results may be off in int8 (root mean square over their standard deviation). What
            causes most of a larger error stays in fp16. 0.015 keeps nearly all answers; 1 quantises all.
        backend: `auto`, or names with commas between: `tensorrt`, `tensorrt_rtx`, `onnxruntime`. `auto` takes the
            TensorRT that imports, and ONNX Runtime too on a machine without a GPU.
        shapes: sizes of the model's inputs; see `shape_range`. An open first axis needs none (1, 8 and 32 are taken).
        samples: real inputs, to verify on besides random ones, to learn shape profiles from, and to calibrate on: an `.npz`
            file with one array per input (a sample), a folder of such files, or an iterable of such files or of dicts
            from input to array. Of these any number: what lies in files or comes from an iterator is not kept in memory.
        max_profiles: the most shape profiles that are made of the samples' sizes, where `shapes` gives none.
        keep_in_tf: op types, node names or patterns (`decoder/*`) that stay in TensorFlow.
        min_region: smallest number of computing ops that make an engine; None: as many as pay for its boundary, by an
            estimate from shapes.
        max_error: largest error of any output; None: of the relative error 1e-5 for fp32, 2e-3 for tf32 and fp16, 2e-2 for
            bf16, 1e-2 for auto, 0.3 for int8 and fp8; 1e-3 for cosine, 1e-2 for top1.
        error_metric: `relative`, max|a−b| / max|b|; `cosine`, 1 − cosine of the angle; `top1`, the share of rows whose largest
            element is another one; or a function of one output, (expected, actual), that returns its error, 0 if equal.
        signature, tags: which signature of a SavedModel; None: `serving_default` (or the only one), and `serve`.
        inputs, outputs: tensors of a frozen `.pb` or a checkpoint; None: guessed where unambiguous.
        constants: inputs that are to be none, with the value that they always have, as `{"is_training": False}`; what
            they rule out goes. Text is read as the input's dtype.
        op_libraries: shared libraries with custom ops, loaded before the model is opened.
        on_failure: when no engine can run, `native` runs TensorFlow's ops (counted, logged), `fail` raises.
        fixed_sizes: build kernels for the smallest, usual and largest size of each profile besides those for all between: up
            to twice as fast there, at some build time and plan size.
        build_at_runtime: on a GPU, build an engine in the background for sizes that no plan takes, while the model serves;
            no call waits for it. Puts the regions' ONNX models into the saved model too.
        workspace_mib: builder memory in MiB; None: the library's default.
        capabilities: compute capabilities to build for, as `8.6`; empty: the library's default set.
        time_limit_seconds: for one support query or build.
        cache: reuse engines from the user's cache folder, and keep new ones there.
        verify: run the stitched model and compare it with TensorFlow.
        resume: take over stages that an interrupted conversion to the same folder has finished (`OUT.partial`), and leave
            those that this one finishes if it is interrupted or fails; models that live in memory start anew always.
        keep_stages: keep every stage's artifact in `OUT/stages`.
        tensorboard: write the graphs before and after as event files to `OUT/tensorboard`.
    """

    precision: str = "fp32"
    backend: str = "auto"
    shapes: tuple[ShapeRange, ...] = ()
    samples: Samples = None
    calibration: str = DEFAULT_METHOD
    calibration_table: Path | None = None
    int8_error: float = DEFAULT_ERROR
    max_profiles: int = DEFAULT_MAX_PROFILES
    keep_in_tf: tuple[str, ...] = ()
    min_region: int | None = None
    max_error: float | None = None
    error_metric: Metric = "relative"
    signature: str | None = None
    tags: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    constants: Mapping[str, Scalar] = field(default_factory=dict)
    op_libraries: tuple[Path, ...] = ()
    on_failure: str = "native"
    fixed_sizes: bool = True
    build_at_runtime: bool = False
    workspace_mib: int | None = None
    capabilities: tuple[str, ...] = ()
    time_limit_seconds: float = 600.0
    cache: bool = True
    verify: bool = True
    resume: bool = True
    keep_stages: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.precision not in TOLERANCES:
            raise ConversionError(f"precision {self.precision!r} is unknown", f"choose {', '.join(TOLERANCES)}")
        if self.calibration not in METHODS:
            raise ConversionError(f"calibration {self.calibration!r} is unknown", f"choose {', '.join(METHODS)}")
        if not self.int8_error > 0:
            raise ConversionError(f"int8_error {self.int8_error} is not positive", f"choose about {DEFAULT_ERROR}")
        if self.on_failure not in ("native", "fail"):
            raise ConversionError(f"on_failure {self.on_failure!r} is unknown", "choose native or fail")
        if self.min_region is not None and self.min_region < 1:
            raise ConversionError(f"min_region {self.min_region} is not positive", "choose 1 or more")
        if self.max_profiles < 1:
            raise ConversionError(f"max_profiles {self.max_profiles} is not positive", "choose 1 or more")
        if self.max_error is not None and not self.max_error >= 0:
            raise ConversionError(f"max_error {self.max_error} is no largest error", "choose 0 or more")
        if self.max_error == 0 and self.precision == "auto":
            raise ConversionError("max_error 0 leaves auto nothing to choose", "choose more than 0, or precision fp32")
        check_metric(self.error_metric)
        if self.max_error is None:
            default_limit(self.error_metric, self.precision)  # refuses a function without a limit
        if not self.time_limit_seconds > 0:
            raise ConversionError(f"time_limit_seconds {self.time_limit_seconds} is not positive", "choose 60 or more")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ConversionError(f"workspace_mib {self.workspace_mib} is not positive", "choose 256 or more")
        for capability in self.capabilities:
            if not re.fullmatch(r"\d+\.\d", capability):
                raise ConversionError(f"capability {capability!r} can't be read", "write it as 8.6")

    @property
    def tolerance(self) -> float:
        """The largest error that passes verification."""
        return default_limit(self.error_metric, self.precision) if self.max_error is None else self.max_error


def shape_range(text: str) -> ShapeRange:
    """Parse `input=MIN,OPT,MAX` or `input=SIZE`, sizes as `8x224x224x3`.

    Raises:
        ConversionError: the text has another form.
    """
    name, _, points = text.rpartition("=")
    try:
        sizes = [tuple(int(axis) for axis in point.split("x")) for point in points.split(",")]
    except ValueError:
        sizes = []
    if not name or len(sizes) not in (1, 3) or any(axis < 0 for size in sizes for axis in size):
        raise ConversionError(f"shape {text!r} can't be read", "write --shape x=1x224x224x3,8x224x224x3,32x224x224x3")
    if len({len(size) for size in sizes}) > 1:
        raise ConversionError(f"shape {text!r} has sizes of different rank", "give MIN, OPT and MAX the same rank")
    low, usual, high = sizes if len(sizes) == 3 else sizes * 3
    return ShapeRange(name, low, usual, high)


def constant(text: str) -> tuple[str, str]:
    """Parse `input=VALUE`.

    Raises:
        ConversionError: the text has another form.
    """
    name, equals, value = text.rpartition("=")
    if not equals or not name:
        raise ConversionError(f"constant {text!r} can't be read", "write --constant is_training=false")
    return name, value


def numbers(option: str, text: str | None) -> tuple[int, ...]:
    """Parse `1,8,32`; nothing from None.

    Raises:
        ConversionError: the text has another form.
    """
    try:
        return tuple(int(part) for part in text.split(",")) if text is not None else ()
    except ValueError as error:
        raise ConversionError(f"{option} {text!r} can't be read", f"write {option} 1,8,32") from error


def split_options(config: Config, backend: str) -> SplitOptions:
    """What `stages.split` needs of a configuration; `backend` is the TensorRT that was chosen."""
    return SplitOptions(
        backend=backend,
        shapes=config.shapes,
        samples=config.samples,
        max_profiles=config.max_profiles,
        keep_in_tf=config.keep_in_tf,
        min_region=config.min_region,
        workspace_mib=config.workspace_mib,
        capabilities=config.capabilities,
        time_limit_seconds=config.time_limit_seconds,
        cache=config.cache,
    )


def engine_options(
    config: Config, names: tuple[str, ...], samples: Sequence[Mapping[str, Array]] = ()
) -> EngineOptions:
    """What `stages.build` needs of a configuration.

    Args:
        names: the back ends that were chosen.
        samples: what auto compares on, by tensor name.
    """
    return EngineOptions(
        backends=names,
        precision=config.precision,
        workspace_mib=config.workspace_mib,
        capabilities=config.capabilities,
        time_limit_seconds=config.time_limit_seconds,
        fixed_sizes=config.fixed_sizes,
        use_cache=config.cache,
        calibration=CalibrationOptions(config.samples, config.calibration, config.calibration_table, config.int8_error),
        auto=AutoOptions(samples, config.error_metric, config.tolerance, drawn=config.samples is None),
    )
