"""TF-TRT's converter for SavedModels, on top of `pipeline.convert`."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import Config
from pipeline.report import Report
from pipeline.tftrt import params as tftrt_params
from pipeline.tftrt import summary as tables
from pipeline.tftrt.conversion import Conversion, run
from pipeline.tftrt.params import DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES, TrtConversionParams, TrtPrecisionMode
from pipeline.tftrt.shapes import (
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    inputs,
    open_beyond_first,
    profiles,
    see,
    strategy_named,
)
from stages import storage
from stages.errors import ArgumentError, OrderError, SampleError, UnsupportedError
from stages.sources import open_model

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

InputFn = Callable[[], Iterable[object]]
_ONE_GPU_BACKENDS = ("tensorrt",)
"""Back ends whose plans run on the GPU only that they were built on. TensorRT for RTX aims at all of a generation."""
_NOT_SAMPLES = "VO"
"""Kinds of dtypes that an `.npz` file can't hold without pickle: bfloat16 and the like, objects."""


class TrtGraphConverterV2:
    """Convert one signature of a SavedModel, with TF-TRT's calls.

        converter = TrtGraphConverterV2(input_saved_model_dir="model", precision_mode="FP16")
        converter.convert()
        converter.build(input_fn)        # where shapes besides the batch are open, or to choose them
        converter.save("converted")

    No GPU is needed. Unlike TF-TRT, `convert` makes the engines where it knows the shapes (all axes but the first are
    given; the first is taken as 1 to 32), and every conversion is compared with TensorFlow before it counts.

    Args:
        input_saved_model_dir: the SavedModel's folder.
        input_saved_model_tags, input_saved_model_signature_key: as in `pipeline.Config`; `serve` and `serving_default`.
        use_dynamic_shape: whether `build` makes profiles by `dynamic_shape_profile_strategy`. Else it makes one for each
            size that it sees, whose first axis may be smaller too, as TF-TRT's engines then were.
        dynamic_shape_profile_strategy: one of `supported_profile_strategies()`; None is Range.
        max_workspace_size_bytes, precision_mode, minimum_segment_size, maximum_cached_engines, use_calibration,
        allow_build_at_runtime: see `TrtConversionParams`.
        conversion_params: all of these in one; then the single ones are not looked at.

    Raises:
        ArgumentError: a value that is unknown (a ValueError, as in TF-TRT).
    """

    def __init__(  # noqa: PLR0917 - TF-TRT's signature
        self,
        input_saved_model_dir: str | None = None,
        input_saved_model_tags: Sequence[str] | None = None,
        input_saved_model_signature_key: str | None = None,
        use_dynamic_shape: bool | None = None,
        dynamic_shape_profile_strategy: str | None = None,
        max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
        allow_build_at_runtime: bool = True,
        conversion_params: TrtConversionParams | None = None,
    ) -> None:
        if not input_saved_model_dir:
            raise ArgumentError("input_saved_model_dir is missing", "give the SavedModel's folder")
        self._params = conversion_params or TrtConversionParams(
            max_workspace_size_bytes,
            precision_mode,
            minimum_segment_size,
            maximum_cached_engines,
            use_calibration,
            allow_build_at_runtime,
        )
        tftrt_params.check(self._params)
        strategy = strategy_named(dynamic_shape_profile_strategy)
        self._strategy = strategy if use_dynamic_shape else PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE
        self._source = Path(input_saved_model_dir)
        self._tags = tuple(input_saved_model_tags) if input_saved_model_tags else None
        self._signature = input_saved_model_signature_key
        self._specs: dict[str, tf.TensorSpec] = {}
        self._function: tf.types.experimental.ConcreteFunction | None = None
        self._conversion: Conversion | None = None
        self._loaded: object = None
        self._missing = ""
        self._built = False

    def convert(self, calibration_input_fn: InputFn | None = None) -> tf.types.experimental.ConcreteFunction:
        """Convert the signature, and return it as a function with engines in it.

        Args:
            calibration_input_fn: for INT8; yields real inputs as `build`'s function does, of any sizes. They are read once,
                and wait in a temporary folder, not in memory. Open axes besides the first take the sizes that they have.

        It takes keywords, or tensors in the order of the inputs' names, and returns a dict. Where axes besides the first
        are open, or TensorFlow can't run the model on random inputs, it is TensorFlow's own function until `build` has
        seen inputs; a warning says so.

        Raises:
            OrderError: called twice (a RuntimeError).
            UnsupportedError: eager execution is off (a NotImplementedError).
            ArgumentError: a calibration function that is missing with INT8 or given without, or that yields nothing or what
                the signature does not take.
            ConversionError: as `pipeline.convert`; VerifyError if the result is not TensorFlow's equal.
        """
        import tensorflow as tf

        if self._function is not None:
            raise OrderError("convert() was called already", "make another converter")
        calibrates = tftrt_params.calibrates(self._params)
        if calibration_input_fn is not None and not calibrates:
            raise ArgumentError("calibration_input_fn is given, but nothing is calibrated", "leave it out")
        if calibration_input_fn is None and calibrates:
            raise ArgumentError(
                "INT8 needs a calibration_input_fn",
                "a function that yields some hundred real inputs, or use_calibration=False",
            )
        config = self._config()
        if not tf.executing_eagerly():
            raise UnsupportedError(
                "TrtGraphConverterV2 needs eager execution", "TrtGraphConverter or create_inference_graph in graph mode"
            )
        source = open_model(self._source, signature=self._signature, tags=self._tags)
        assert source.function is not None  # what is no SavedModel has been refused
        self._specs = dict(sorted(source.function.structured_input_signature[1].items()))
        if calibration_input_fn is not None:
            return self._convert(replace(config, samples=inputs(self._specs, calibration_input_fn)))
        if any(open_beyond_first(spec.shape) for spec in self._specs.values()):
            return self._wait(source.function, "axes besides the first are open")
        try:
            return self._convert(config)
        except SampleError as error:
            return self._wait(source.function, f"random inputs do not suit it ({error.problem})")

    def build(self, input_fn: InputFn | None) -> tf.types.experimental.ConcreteFunction:
        """Make engines for the shapes that an input function yields, in place of those that `convert` made.

        Args:
            input_fn: yields arrays, lists or tuples of them (in the order of the inputs' names), or dicts by name. The
                first is also one of the inputs on which the result is compared with TensorFlow.

        Returns:
            The converted function, as `convert`; the one that `convert` returned keeps its engines.

        Raises:
            OrderError: before `convert`, or without an input function (a RuntimeError).
            UnsupportedError: called twice (a NotImplementedError).
            ArgumentError: inputs that the signature does not take.
            ConversionError: as `convert`.
        """
        if self._built:
            raise UnsupportedError("build() was called already", "make another converter")
        if input_fn is None:
            raise OrderError("build() has no input_fn", "give a function that yields inputs")
        if self._function is None:
            raise OrderError("build() before convert()", "call convert() first")
        seen = see(self._specs, input_fn)
        config = replace(self._config(), shapes=profiles(self._specs, seen.shapes, self._strategy))
        if tftrt_params.calibrates(self._params) and self._conversion is not None:
            config = replace(config, calibration_table=self._conversion.calibration_table)
        with tempfile.TemporaryDirectory(prefix="graftrt-samples-") as folder:
            if seen.first and not any(array.dtype.kind in _NOT_SAMPLES for array in seen.first.values()):
                samples = Path(folder) / "samples.npz"
                np.savez(samples, allow_pickle=False, **dict(seen.first))
                config = replace(config, samples=samples)
            function = self._convert(config)
        self._built = True
        return function

    def save(
        self,
        output_saved_model_dir: str,
        save_gpu_specific_engines: bool = True,
        options: tf.saved_model.SaveOptions | None = None,
    ) -> None:
        """Write the converted SavedModel; its other signatures are the source's.

        Args:
            output_saved_model_dir: a SavedModel that is there already is replaced.
            save_gpu_specific_engines: False is refused where plans run on one GPU only (enterprise TensorRT), because
                nothing is built while a model serves. Plans of TensorRT for RTX and ONNX Runtime are saved in any case.
            options: passed to `tf.saved_model.save`, but for `experimental_custom_gradients`: engines have none.

        Raises:
            OrderError: before `convert`, or before a `build` that is needed.
            UnsupportedError: see `save_gpu_specific_engines`.
            ArtifactError: the folder holds something else than a SavedModel, or can't be written.
        """
        if self._function is None:
            raise OrderError("save() before convert()", "call convert() first")
        if self._conversion is None:
            raise OrderError(f"save(): there are no engines: {self._missing}", "call build(input_fn) first")
        bound = [
            e.backend for r in self._conversion.report.regions for e in r.engines if e.backend in _ONE_GPU_BACKENDS
        ]
        if bound and not save_gpu_specific_engines:
            raise UnsupportedError(
                f"save_gpu_specific_engines=False: plans of {bound[0]} run on this GPU only, and none is built later",
                "install tensorrt-rtx in place of tensorrt, or convert on each kind of GPU",
            )
        out = Path(output_saved_model_dir)
        with _replacing(out), storage.write_folder(out) as folder:
            if options is None:
                shutil.copytree(self._conversion.saved_model, folder, copy_function=_link, dirs_exist_ok=True)
            else:
                self._save_again(folder, options)

    def summary(
        self, line_length: int = 160, detailed: bool = True, print_fn: Callable[[str], object] | None = None
    ) -> None:
        """Print a table of the engines, the share of ops in them, and why the others stay in TensorFlow.

        Args:
            line_length: in characters, 160 or more.
            detailed: also print which ops each engine runs.
            print_fn: called with each line; None is `print`.

        Raises:
            OrderError: before `convert`.
            ArgumentError: lines that are too short.
        """
        if self._function is None:
            raise OrderError("summary() before convert()", "call convert() first")
        tables.print_summary(self._conversion or self._missing, line_length, detailed, print_fn or print)

    @property
    def report(self) -> Report:
        """The conversion's report (docs/report.md); `report.write(path)` keeps it.

        Raises:
            OrderError: nothing has been converted yet.
        """
        if self._conversion is None:
            raise OrderError("there is no report", "call convert(), and build(input_fn) where it asks for that")
        return self._conversion.report

    def _config(self) -> Config:
        return replace(tftrt_params.config(self._params), signature=self._signature, tags=self._tags)

    def _wait(
        self, function: tf.types.experimental.ConcreteFunction, why: str
    ) -> tf.types.experimental.ConcreteFunction:
        """TensorFlow's own function, until `build` has seen inputs."""
        log.warning("%s has no engines yet, build(input_fn) makes them: %s", self._source, why)
        self._missing, self._function = why, _positional(function)
        return self._function

    def _convert(self, config: Config) -> tf.types.experimental.ConcreteFunction:
        import tensorflow as tf

        conversion = run(self._source, config)
        loaded = tf.saved_model.load(str(conversion.saved_model))
        function = _positional(loaded.signatures[conversion.report.signature])
        # Plans are read when an engine is first called, so the folder must last as long as the function does.
        function._graftrt_model = loaded
        weakref.finalize(loaded, conversion.remove)
        self._loaded, self._conversion, self._function = loaded, conversion, function
        return function

    def _save_again(self, folder: Path, options: tf.saved_model.SaveOptions) -> None:
        import tensorflow as tf

        options.experimental_custom_gradients = False
        signatures = dict(self._loaded.signatures)  # type: ignore[attr-defined]
        tf.saved_model.save(self._loaded, str(folder), signatures=signatures, options=options)


def _positional(function: tf.types.experimental.ConcreteFunction) -> tf.types.experimental.ConcreteFunction:
    """Let a signature take tensors in the order of its inputs, as TF-TRT's functions did."""
    function._num_positional_args = len(function._arg_keywords)
    return function


def _link(source: str, target: str) -> None:
    storage.link_or_copy(Path(source), Path(target))


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[None]:
    """Put a SavedModel (or an empty folder) that is in the way aside, and back again if the block fails."""
    if not out.is_dir() or (any(out.iterdir()) and not (out / "saved_model.pb").exists()):
        yield
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    out.rename(aside / out.name)
    try:
        yield
    except BaseException:
        (aside / out.name).rename(out)
        aside.rmdir()
        raise
    shutil.rmtree(aside)
