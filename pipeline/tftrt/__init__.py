"""TF-TRT's calls, with their names, arguments and defaults, on top of GraftRT.

    from pipeline import tftrt as trt    # was: from tensorflow.python.compiler.tensorrt import trt_convert as trt

What each call, parameter and environment variable is now: docs/migrating-from-tf-trt.md. As with TF-TRT, importing this
makes TensorFlow know the op that converted models hold.
"""

import stages.engine_op  # noqa: F401 - makes TensorFlow know EngineCall
from pipeline.tftrt.converter import TrtGraphConverterV2
from pipeline.tftrt.converter_v1 import (
    TrtGraphConverter,
    calib_graph_to_infer_graph,
    create_inference_graph,
    get_tensorrt_rewriter_config,
)
from pipeline.tftrt.params import (
    DEFAULT_TRT_CONVERSION_PARAMS,
    DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES,
    TrtConversionParams,
    TrtPrecisionMode,
)
from pipeline.tftrt.shapes import (
    PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    PROFILE_STRATEGY_OPTIMAL,
    PROFILE_STRATEGY_RANGE,
    PROFILE_STRATEGY_RANGE_OPTIMAL,
    supported_profile_strategies,
)

Converter = TrtGraphConverterV2
"""Its public name in TensorFlow: `tf.experimental.tensorrt.Converter`."""
ConversionParams = TrtConversionParams
"""Likewise `tf.experimental.tensorrt.ConversionParams`."""

__all__ = [
    "DEFAULT_TRT_CONVERSION_PARAMS",
    "DEFAULT_TRT_MAX_WORKSPACE_SIZE_BYTES",
    "PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE",
    "PROFILE_STRATEGY_OPTIMAL",
    "PROFILE_STRATEGY_RANGE",
    "PROFILE_STRATEGY_RANGE_OPTIMAL",
    "ConversionParams",
    "Converter",
    "TrtConversionParams",
    "TrtGraphConverter",
    "TrtGraphConverterV2",
    "TrtPrecisionMode",
    "calib_graph_to_infer_graph",
    "create_inference_graph",
    "get_tensorrt_rewriter_config",
    "supported_profile_strategies",
]
