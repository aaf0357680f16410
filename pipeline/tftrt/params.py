"""TF-TRT's conversion parameters and environment variables, and what they are in a `Config`."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.config import Config
from stages.errors import ArgumentError

log = logging.getLogger(__name__)

DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES = 1 << 30
FIRST_WORKSPACE_SIZE_BYTES = 2 << 20
"""The default of 2018."""
_DEFAULT_WORKSPACES = {FIRST_WORKSPACE_SIZE_BYTES, DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES, sys.maxsize - 512}
"""What TF-TRT's releases had as defaults: whoever gives one of these has not chosen a size."""
_SMALL_WORKSPACE_BYTES = 1 << 30

_VARIABLES_WITHOUT_EFFECT = {
    "TF_DEBUG_TRT_ALLOW_INEFFICIENT_TRANSPOSE": "the builder decides about transposes",
    "TF_TRT_ABORT_CUDA_ENGINE_BUILD": "builds run in a child process; use keep_in_tf of pipeline.Config to leave ops out",
    "TF_TRT_EXPERIMENTAL_FEATURES": "large weights always stay variables, and native segments are always kept",
    "TF_TRT_EXPORT_GRAPH_VIZ_PATH": "no picture is drawn; summary() and report say what is in which engine",
    "TF_TRT_FIXED_ALGORITHM_ID": "the builder chooses its algorithms",
    "TF_TRT_MAX_ALLOWED_ENGINES": "the number of engines is not limited; minimum_segment_size drops small ones",
    "TF_TRT_OP_FAKELIST": "ops can't be declared supported; the builder is asked",
    "TF_TRT_SHOW_DETAILED_REPORT": "summary() always says why ops stay in TensorFlow",
}


class TrtPrecisionMode:
    """The precisions that TF-TRT had, as strings; lower case is accepted too.

    FP32 is IEEE float32 here. TF-TRT let TensorRT compute in TF32 where TensorFlow does; that is
    `pipeline.convert(…, Config(precision="tf32"))`. What INT8 would spoil stays FP16 (docs/precision.md).
    """

    FP32 = "FP32"
    FP16 = "FP16"
    INT8 = "INT8"

    @staticmethod
    def supported_precision_modes() -> list[str]:
        """Every spelling that is accepted."""
        modes = [TrtPrecisionMode.FP32, TrtPrecisionMode.FP16, TrtPrecisionMode.INT8]
        return modes + [mode.lower() for mode in modes]


class TrtConversionParams(NamedTuple):
    """How to convert, with TF-TRT's names and defaults.

    Attributes:
        max_workspace_size_bytes: the builder's memory. TF-TRT's own defaults (2 MiB, 1 GiB, sys.maxsize - 512) mean the
            library's default here. TensorRT for RTX counts weights and activations in it, so a size that was enough for
            TF-TRT may leave ops in TensorFlow; they are reported as `build failed`.
        precision_mode: see `TrtPrecisionMode`.
        minimum_segment_size: fewest ops that make an engine; only ops that compute are counted. -1 leaves the whole graph
            in TensorFlow (functions are inlined before, so there is no other graph).
        maximum_cached_engines: has no effect. An engine has a profile for each range of shapes, and their number is not
            limited.
        use_calibration: only matters with INT8, as in TF-TRT. False: the graph itself states ranges, by FakeQuant or
            QuantizeAndDequantize ops.
        allow_build_at_runtime: for shapes outside the profiles an engine is built in the background, at most 8 for a
            region; calls run as TensorFlow's ops until it is ready, counted in `stages.engine_op.stats()`.
    """

    max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES
    precision_mode: str = TrtPrecisionMode.FP32
    minimum_segment_size: int = 3
    maximum_cached_engines: int = 1
    use_calibration: bool = True
    allow_build_at_runtime: bool = True


DEFAULT_TRT_CONVERSION_PARAMS = TrtConversionParams()


def check(params: TrtConversionParams) -> None:
    """Raises ArgumentError (a ValueError) for what TF-TRT refused with one."""
    modes = TrtPrecisionMode.supported_precision_modes()
    if params.precision_mode not in modes:
        raise ArgumentError(f"precision_mode {params.precision_mode!r} is unknown", f"one of {', '.join(modes)}")
    if params.minimum_segment_size < 1 and params.minimum_segment_size != -1:
        raise ArgumentError(
            f"minimum_segment_size {params.minimum_segment_size} is not positive", "1 or more, or -1 for no engines"
        )
    if params.max_workspace_size_bytes < 1:
        raise ArgumentError(
            f"max_workspace_size_bytes {params.max_workspace_size_bytes} is not positive", "leave it out"
        )


def is_int8(params: TrtConversionParams) -> bool:
    return params.precision_mode.upper() == TrtPrecisionMode.INT8


def calibrates(params: TrtConversionParams) -> bool:
    """Whether ranges have to be collected first."""
    return is_int8(params) and params.use_calibration


def config(params: TrtConversionParams, environment: Mapping[str, str] = os.environ) -> Config:
    """The configuration that the parameters and TF-TRT's environment variables stand for, without shapes.

    Says once in a process what has no effect any more.
    """
    _say_what_has_no_effect(params, environment)
    denied = tuple(op.strip() for op in environment.get("TF_TRT_OP_DENYLIST", "").split(",") if op.strip())
    nothing = params.minimum_segment_size == -1
    native = environment.get("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "true").lower() not in ("0", "false")
    return Config(
        precision=params.precision_mode.lower(),
        keep_in_tf=(*denied, "*") if nothing else denied,
        min_region=max(1, params.minimum_segment_size),
        workspace_mib=_workspace_mib(params.max_workspace_size_bytes),
        on_failure="native" if native else "fail",
        build_at_runtime=params.allow_build_at_runtime,
        keep_stages=True,
    )


def _workspace_mib(size: int) -> int | None:
    return None if size in _DEFAULT_WORKSPACES else -(-size // (1 << 20))


def _say_what_has_no_effect(params: TrtConversionParams, environment: Mapping[str, str]) -> None:
    if params.maximum_cached_engines != DEFAULT_TRT_CONVERSION_PARAMS.maximum_cached_engines:
        warn_once("maximum_cached_engines has no effect: the number of engines and profiles is not limited")
    size = params.max_workspace_size_bytes
    if size < _SMALL_WORKSPACE_BYTES and size not in _DEFAULT_WORKSPACES:
        warn_once(
            f"max_workspace_size_bytes={size} limits the builder's memory, in which TensorRT for RTX counts weights and "
            "activations too: ops that do not fit stay in TensorFlow"
        )
    for variable, instead in _VARIABLES_WITHOUT_EFFECT.items():
        if environment.get(variable):
            warn_once(f"{variable} has no effect: {instead}")


@functools.cache
def warn_once(message: str) -> None:
    """Log a warning, the first time in this process."""
    log.warning(message)
