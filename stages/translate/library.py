"""The installed tf2onnx: checked, quiet, used by one thread at a time, and left as it was found.

tf2onnx keeps its state in module globals and offers no hook for what GraftRT needs, so functions of it are replaced
for the length of one call. Everything here undoes itself.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import threading
from collections.abc import Iterator, MutableMapping
from typing import TypeVar

from stages.errors import ExportError

SUPPORTED = "1.17"
OPSET = 17
"""The ONNX opset written. 17 is the first with LayerNormalization. 18, where tf2onnx 1.17 ends, turns the axes of
Reduce ops into inputs, and tf2onnx's passes move no Transpose past those: EfficientNetB0 keeps 18 of them instead of 1.
TensorRT for RTX 1.7's parser takes it."""

INTERNALS = {
    "tf2onnx.constants:ONNX_DOMAIN": (),
    "tf2onnx.constants:OPSET_TO_IR_VERSION": (),
    "tf2onnx.graph:Graph.get_dtype": ("name",),
    "tf2onnx.graph:Graph.get_node_by_output": ("output",),
    "tf2onnx.graph:Graph.get_rank": ("name",),
    "tf2onnx.graph:Graph.get_shape": ("name",),
    "tf2onnx.graph:Graph.get_tensor_value": ("output",),
    "tf2onnx.graph:Graph.make_const": ("name", "np_val"),
    "tf2onnx.graph:Graph.make_consts": ("values",),
    "tf2onnx.graph:Graph.remove_node": ("node_name",),
    "tf2onnx.graph:Graph.replace_inputs": ("node", "new_inputs"),
    "tf2onnx.graph:Node.get_attr_value": ("name", "default"),
    "tf2onnx.graph:Node.set_attr": ("name", "value"),
    "tf2onnx.graph:Graph.make_node": ("op_type", "inputs", "name", "skip_conversion"),
    "tf2onnx.graph:Graph.make_model": ("graph_doc", "graph_name"),
    "tf2onnx.graph:Graph.delete_unused_nodes": ("outputs_name",),
    "tf2onnx.graph:Node.update_proto": ("external_tensor_storage",),
    "tf2onnx.handler:tf_op.create_mapping": ("max_onnx_opset_version", "extra_opsets"),
    "tf2onnx.handler:tf_op.get_opsets": (),
    "tf2onnx.handler:tf_op._MAPPING": (),
    "tf2onnx.handler:tf_op._DOMAIN_MAPPING": (),
    "tf2onnx.tfonnx:run_rewriters": ("g", "funcs", "continue_on_error"),
    "tf2onnx.tfonnx:process_tf_graph": ("tf_graph", "continue_on_error", "opset", "input_names", "const_node_values"),
    "tf2onnx.tfonnx:resolve_functions": ("tf_graph",),
    "tf2onnx.tfonnx:clear_functions": (),
    "tf2onnx.tf_loader:tf_optimize": ("input_names", "output_names", "graph_def"),
    "tf2onnx.onnx_opset.math:FloorDiv.version_6": ("ctx", "node"),
    "tf2onnx.onnx_opset.math:FloorMod.version_7": ("ctx", "node"),
    "tf2onnx.onnx_opset.tensor:TopKV2.version_13": ("ctx", "node"),
    "tf2onnx.optimizer:optimize_graph": ("graph", "catch_errors", "optimizers"),
    "tf2onnx.optimizer:_optimizers": (),
    "tf2onnx.optimizer.optimizer_base:GraphOptimizerBase._optimize": ("graph",),
    "tf2onnx.utils:INTERNAL_NAME": (),
    "tf2onnx.utils:make_name": ("name",),
    "tf2onnx.utils:map_onnx_to_numpy_type": ("onnx_type",),
    "tf2onnx.utils:ONNX_TO_NUMPY_DTYPE": (),
    "tf2onnx.tf_utils:TF_TO_ONNX_DTYPE": (),
}
"""What is used of tf2onnx beyond its public calls: `module:attribute` and the parameters that a function must have."""

_LOCK = threading.RLock()
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def check_internals() -> None:
    """Look whether tf2onnx is there, has a version that is known, and has the internals that are used.

    Raises:
        ExportError: it is not so; the message names the versions that are supported.
    """
    remedy = f"install tf2onnx {SUPPORTED}.x, the version that is supported"
    try:
        import tf2onnx
    except ImportError as error:
        raise ExportError(f"tf2onnx can't be imported: {error}", remedy) from error
    if tf2onnx.__version__.split(".")[:2] != SUPPORTED.split("."):
        raise ExportError(f"tf2onnx {tf2onnx.__version__} is installed", remedy)
    for place, parameters in INTERNALS.items():
        module, _, path = place.partition(":")
        try:
            found: object = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ExportError(f"tf2onnx {tf2onnx.__version__} has no {module}.{path}", remedy) from error
        missing = set(parameters) - set(inspect.signature(found).parameters) if callable(found) else ()
        if missing:
            raise ExportError(
                f"tf2onnx {tf2onnx.__version__}: {module}.{path} takes no {', '.join(sorted(missing))}", remedy
            )


@contextlib.contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Set an attribute of a module or class for the length of a block."""
    original = vars(owner)[name]  # not getattr: a staticmethod must come back as one
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def replaced_item(owner: MutableMapping[_Key, _Value], key: _Key, value: _Value) -> Iterator[None]:
    """Set an item of a mapping for the length of a block."""
    present, original = key in owner, owner.get(key)
    owner[key] = value
    try:
        yield
    finally:
        if present and original is not None:
            owner[key] = original
        else:
            del owner[key]


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _collected(*names: str) -> Iterator[list[logging.LogRecord]]:
    """Take the warnings and errors that loggers would print."""
    collector = _Collector()
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.handlers[:], logger.propagate = [collector], False
            logger.setLevel(logging.WARNING)
        yield collector.records
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


@contextlib.contextmanager
def library() -> Iterator[list[logging.LogRecord]]:
    """Hold tf2onnx for the length of a block; yields the list into which its log records go.

    Raises:
        ExportError: tf2onnx is missing or not the version that is supported.
    """
    with _LOCK:
        check_internals()
        import ml_dtypes
        import onnx
        from tf2onnx import tf_utils, tfonnx, utils
        from tf2onnx.handler import tf_op

        from stages.translate import handlers

        with contextlib.ExitStack() as stack:
            # Generated names end in a counter of the process: from a fresh start equal graphs get equal names.
            stack.enter_context(replaced(utils, "INTERNAL_NAME", 1))
            stack.enter_context(replaced(tf_op, "_MAPPING", tf_op._MAPPING))
            stack.enter_context(replaced(tf_op, "_DOMAIN_MAPPING", tf_op._DOMAIN_MAPPING))
            # tf2onnx passes bfloat16 off as float16.
            bfloat16 = onnx.TensorProto.BFLOAT16
            stack.enter_context(replaced_item(tf_utils.TF_TO_ONNX_DTYPE, _tf_bfloat16(), bfloat16))
            stack.enter_context(replaced_item(utils.ONNX_TO_NUMPY_DTYPE, bfloat16, ml_dtypes.bfloat16))
            stack.enter_context(handlers.registered())
            stack.callback(tfonnx.clear_functions)
            yield stack.enter_context(_collected("tf2onnx", "tensorflow"))


def _tf_bfloat16() -> int:
    import tensorflow as tf

    return int(tf.bfloat16.as_datatype_enum)
