"""TF-TRT's calls for TensorFlow 1: a converter for GraphDefs and SavedModels, and the two functions of 2018."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.report import Report
from pipeline.tftrt import calibration_graph
from pipeline.tftrt import params as tftrt_params
from pipeline.tftrt.calibration_graph import Source
from pipeline.tftrt.graph_defs import FrozenSignature, freeze_saved_model, graft, node_name
from pipeline.tftrt.params import (
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    FIRST_WORKSPACE_SIZE_BYTES,
    TrtConversionParams,
    TrtPrecisionMode,
)
from stages import storage
from stages.errors import ArgumentError, OrderError, UnsupportedError

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

_SERVING = ("serve",)
_DEFAULT_SIGNATURE = "serving_default"


class TrtGraphConverter:
    """Convert a frozen GraphDef, or a SavedModel read as TensorFlow 1 reads it, to a GraphDef with engines inside.

    Works in eager and in graph mode; TF-TRT's refused eager mode.

    Args:
        input_saved_model_dir, input_saved_model_tags, input_saved_model_signature_key: the SavedModel; by default the
            tag `serve` and the signature `serving_default`.
        input_graph_def: a frozen graph in its place. Its Placeholders are the inputs.
        nodes_denylist: node names or tensors that stay in TensorFlow under their own names. With `input_graph_def` they
            are what is fetched, as with TF-TRT; without them it is every node that nobody reads.
        max_batch_size: largest size of open first axes; larger batches run as TensorFlow's ops. 1 to 32 where
            `is_dynamic_op`.
        is_dynamic_op: nothing is built while a model runs; True only leaves `max_batch_size` unread.
        max_workspace_size_bytes, precision_mode, minimum_segment_size, maximum_cached_engines, use_calibration: see
            `TrtConversionParams`.

    Raises:
        ArgumentError: a value that is unknown, or both or none of the two inputs (a ValueError).
    """

    def __init__(  # noqa: PLR0917 - TF-TRT's signature
        self,
        input_saved_model_dir: str | None = None,
        input_saved_model_tags: Sequence[str] | None = None,
        input_saved_model_signature_key: str | None = None,
        input_graph_def: tf.compat.v1.GraphDef | None = None,
        nodes_denylist: Sequence[object] | None = None,
        max_batch_size: int | None = 1,
        max_workspace_size_bytes: int = DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
        precision_mode: str = TrtPrecisionMode.FP32,
        minimum_segment_size: int = 3,
        is_dynamic_op: bool = False,
        maximum_cached_engines: int = 1,
        use_calibration: bool = True,
    ) -> None:
        if bool(input_graph_def) == bool(input_saved_model_dir):
            raise ArgumentError("give one of input_graph_def and input_saved_model_dir", "leave the other out")
        self._params = TrtConversionParams(
            max_workspace_size_bytes,
            precision_mode,
            minimum_segment_size,
            maximum_cached_engines,
            use_calibration,
            allow_build_at_runtime=is_dynamic_op,
        )
        tftrt_params.check(self._params)
        self._batches = None if is_dynamic_op else [(1, _batch_size(max_batch_size))]
        self._graph_def = input_graph_def
        self._folder = input_saved_model_dir
        self._tags = tuple(input_saved_model_tags or _SERVING)
        self._key = input_saved_model_signature_key or _DEFAULT_SIGNATURE
        self._denied = None if nodes_denylist is None else list(nodes_denylist)
        self._source: FrozenSignature | None = None
        self._calibration: tf.compat.v1.GraphDef | None = None
        self._converted: tf.compat.v1.GraphDef | None = None
        self._report: Report | None = None

    def convert(self) -> tf.compat.v1.GraphDef:
        """Convert, and return the GraphDef, its engines inside; with INT8 and `use_calibration` a graph that collects
        ranges while it runs, which `calibrate` runs and finishes.

        Raises:
            OrderError: called twice (a RuntimeError).
            ArgumentError: no such node; a Placeholder has open axes besides the first.
            ConversionError: as `pipeline.convert`; the result would hold more than 1 GiB.
        """
        if self._converted is not None or self._calibration is not None:
            raise OrderError("convert() was called already", "make another converter")
        config = tftrt_params.config(self._params)
        graph_def, outputs = self._graph_def, self._denied
        if graph_def is None:
            self._source = freeze_saved_model(str(self._folder), self._tags, self._key)
            graph_def, outputs = self._source.graph_def, [*self._source.outputs, *(self._denied or ())]
        kept = tuple(node_name(node) for node in self._denied or ())
        config = replace(config, keep_in_tf=(*config.keep_in_tf, *kept))
        if tftrt_params.calibrates(self._params):
            self._calibration = calibration_graph.make(Source(graph_def, outputs, config, self._batches))
            return self._calibration
        self._converted, self._report = graft(graph_def, outputs, config, self._batches)
        return self._converted

    def calibrate(
        self,
        fetch_names: Sequence[str],
        num_runs: int,
        feed_dict_fn: Callable[[], Mapping[str, object]] | None = None,
        input_map_fn: Callable[[], Mapping[str, tf.Tensor]] | None = None,
    ) -> tf.compat.v1.GraphDef:
        """Run the graph that `convert` returned, and return the one to deploy.

        Args:
            fetch_names: names of nodes or tensors to fetch.
            num_runs: how often to run it.
            feed_dict_fn: called before each run; returns values by tensor name.
            input_map_fn: called once; returns tensors by the names of those that they take the place of. One of the two.

        Raises:
            OrderError: before `convert`, or called twice (a RuntimeError).
            ArgumentError: both or none of the two functions, no runs, or `convert` did not ask for calibration.
            ConversionError: as `convert`; and TensorFlow's own errors while the graph runs.
        """
        import tensorflow as tf

        v1 = tf.compat.v1
        if not tftrt_params.calibrates(self._params):
            raise ArgumentError("calibrate(): nothing is to be calibrated", "precision_mode='INT8'")
        if self._calibration is None:
            raise OrderError("calibrate() before convert()", "call convert() first")
        if self._converted is not None:
            raise OrderError("calibrate() was called already", "make another converter")
        if bool(feed_dict_fn) == bool(input_map_fn):
            raise ArgumentError("calibrate(): give one of feed_dict_fn and input_map_fn", "leave the other out")
        if num_runs < 1:
            raise ArgumentError(f"calibrate(): num_runs {num_runs} is not positive", "some hundred real inputs")
        with tf.Graph().as_default(), v1.Session() as session:
            fetches = tf.graph_util.import_graph_def(
                self._calibration,
                input_map=input_map_fn() if input_map_fn else None,
                return_elements=list(fetch_names),
                name="",
            )
            for _ in range(num_runs):
                session.run(fetches, feed_dict_fn() if feed_dict_fn else None)
        self._converted, self._report = calibration_graph.finish(self._calibration)
        return self._converted

    def save(self, output_saved_model_dir: str) -> None:
        """Write the converted graph as a SavedModel with the source's tags and signature; its tensors keep their names.

        Raises:
            OrderError: before `convert`, or before `calibrate` where that is needed.
            ArgumentError: the source was a GraphDef, whose signature is unknown.
            ArtifactError: the folder exists, or can't be written.
        """
        import tensorflow as tf

        if self._converted is None:
            first = "convert()" if self._calibration is None else "calibrate()"
            raise OrderError(f"save() before {first}", f"call {first} first")
        if self._source is None:
            raise ArgumentError("save(): the input was a GraphDef", "write what convert() returns")
        v1 = tf.compat.v1
        with storage.write_folder(Path(output_saved_model_dir)) as folder:
            builder = v1.saved_model.Builder(str(folder))
            with tf.Graph().as_default(), v1.Session() as session:
                tf.graph_util.import_graph_def(self._converted, name="")
                builder.add_meta_graph_and_variables(
                    session, list(self._tags), signature_def_map={self._key: self._source.signature}
                )
            builder.save()

    @property
    def report(self) -> Report:
        """The conversion's report (docs/report.md).

        Raises:
            OrderError: before `convert`, or before `calibrate` where that is needed.
        """
        if self._report is None:
            raise OrderError("there is no report", "call convert() first, and calibrate() with INT8")
        return self._report


def create_inference_graph(  # noqa: PLR0917 - TF-TRT's signature
    input_graph_def: tf.compat.v1.GraphDef | None,
    outputs: Sequence[object] | None,
    max_batch_size: int | None = 1,
    max_workspace_size_bytes: int = FIRST_WORKSPACE_SIZE_BYTES,
    precision_mode: str = TrtPrecisionMode.FP32,
    minimum_segment_size: int = 3,
    is_dynamic_op: bool = False,
    maximum_cached_engines: int = 1,
    cached_engine_batches: Sequence[int] | None = None,
    *,
    input_saved_model_dir: str | None = None,
    input_saved_model_tags: Sequence[str] | None = None,
    input_saved_model_signature_key: str | None = None,
    output_saved_model_dir: str | None = None,
) -> tf.compat.v1.GraphDef:
    """Convert a frozen GraphDef to a GraphDef with engines inside: the call of 2018.

    With INT8 it is a graph that collects ranges while it runs: import it, run it on real inputs, then give it to
    `calib_graph_to_infer_graph` in the same process.

    Args:
        outputs: names of nodes (or tensors) that are fetched; they keep their names.
        max_batch_size: largest size of open first axes.
        max_workspace_size_bytes, precision_mode, minimum_segment_size, maximum_cached_engines: see `TrtConversionParams`.
        is_dynamic_op: nothing is built while the graph runs; True leaves `max_batch_size` unread and takes 1 to 32.
        cached_engine_batches: one profile up to each of these batch sizes, in place of `max_batch_size`.
        input_saved_model_dir, input_saved_model_tags, input_saved_model_signature_key, output_saved_model_dir: of
            TensorFlow 1.13 and later; a SavedModel in place of `input_graph_def`, and where to write the result.

    Raises:
        ArgumentError: a wrong value, an unknown node, or a Placeholder with open axes besides the first (a ValueError).
        ConversionError: as `pipeline.convert`; the result would hold more than 1 GiB.
    """
    if input_graph_def is None or input_saved_model_dir:
        converter = TrtGraphConverter(
            input_saved_model_dir=input_saved_model_dir,
            input_saved_model_tags=input_saved_model_tags,
            input_saved_model_signature_key=input_saved_model_signature_key,
            input_graph_def=input_graph_def,
            max_batch_size=max_batch_size,
            max_workspace_size_bytes=max_workspace_size_bytes,
            precision_mode=precision_mode,
            minimum_segment_size=minimum_segment_size,
            is_dynamic_op=is_dynamic_op,
            maximum_cached_engines=maximum_cached_engines,
        )
        if output_saved_model_dir and precision_mode.upper() == TrtPrecisionMode.INT8:
            raise ArgumentError(
                "output_saved_model_dir: with INT8 there is nothing to deploy yet",
                "TrtGraphConverter.calibrate and save",
            )
        converted = converter.convert()
        if output_saved_model_dir:
            converter.save(output_saved_model_dir)
        return converted
    if output_saved_model_dir:
        raise ArgumentError("output_saved_model_dir: the input is a GraphDef", "write what is returned")
    params = TrtConversionParams(
        max_workspace_size_bytes,
        precision_mode,
        minimum_segment_size,
        maximum_cached_engines,
        allow_build_at_runtime=is_dynamic_op,
    )
    tftrt_params.check(params)
    batches = [] if is_dynamic_op else [_batch_size(max_batch_size)]
    if cached_engine_batches:
        batches = sorted(map(_batch_size, cached_engine_batches))
    ranges = [(1, batch) for batch in batches] or None
    config = tftrt_params.config(params)
    if tftrt_params.calibrates(params):
        return calibration_graph.make(Source(input_graph_def, outputs, config, ranges))
    return graft(input_graph_def, outputs, config, ranges)[0]


def calib_graph_to_infer_graph(
    calibration_graph_def: tf.compat.v1.GraphDef, is_dynamic_op: bool = False
) -> tf.compat.v1.GraphDef:
    """The graph to deploy, of a calibration graph that was run on real inputs in this process; see `create_inference_graph`.

    Args:
        calibration_graph_def: what `create_inference_graph` returned, or a graph that it was imported into. What it has
            collected is dropped once this has succeeded.
        is_dynamic_op: has no effect; `create_inference_graph` was told.

    Raises:
        ArgumentError: it is no calibration graph (a ValueError).
        OrderError: it was made by another process, is finished already, or was not run yet (a RuntimeError).
        ConversionError: as `create_inference_graph`.
    """
    return calibration_graph.finish(calibration_graph_def)[0]


def get_tensorrt_rewriter_config(
    conversion_params: TrtConversionParams,
    is_dynamic_op: bool | None = None,
    max_batch_size: int | None = None,
    is_v2: bool = False,
    disable_non_trt_optimizers: bool = False,
) -> RewriterConfig:
    """TF-TRT was a pass of Grappler, and this its configuration; TensorFlow no longer has the pass.

    Raises:
        UnsupportedError: always (a NotImplementedError).
    """
    raise UnsupportedError(
        "get_tensorrt_rewriter_config: engines are not made inside TensorFlow's optimiser",
        "TrtGraphConverterV2, create_inference_graph or pipeline.convert",
    )


def _batch_size(value: object) -> int:
    if not isinstance(value, int) or value < 1:
        raise ArgumentError(f"max_batch_size {value!r} is no batch size", "1 or more, or is_dynamic_op=True")
    return value
