"""TensorFlow graph in, ONNX model out: the only caller of tf2onnx.

The model's nodes say which TF ops they came from, its interface is named by position, and ops that could not be
translated are listed by their TF names, so that whoever cuts the graph can leave them in TensorFlow.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.errors import ExportError
from stages.library import attribute_functions
from stages.translate import external, handlers, loops, passes, weights
from stages.translate.expand import COMPLEX_RULES, RULES, expand
from stages.translate.interface import Port, finish
from stages.translate.library import OPSET, SUPPORTED, check_internals, library
from stages.translate.provenance import all_nodes, complete, origins, origins_by_node, tagged
from stages.translate.recorder import Recorder
from stages.translate.unsafe import FRAME, UNSAFE, unsafe_calls

if TYPE_CHECKING:
    import onnx
    import tensorflow as tf
    from tf2onnx.graph import Graph

    from stages.compare import Array

__all__ = [
    "OPSET",
    "SUPPORTED",
    "UNSAFE",
    "Translation",
    "check_internals",
    "origins",
    "origins_by_node",
    "translatable_ops",
    "translate",
]

_log = logging.getLogger(__name__)
_LEFT = "Tensorflow op [%s: %s] is not supported"
_FAILED = "Failed to convert node %r (fct=%r)\n%r"


@dataclass(frozen=True, slots=True)
class Translation:
    """One TF graph as ONNX.

    Attributes:
        model: inputs `input_<i>` and outputs `output_<i>` with TensorFlow's dtypes and layout; usable only if
            `unsupported` is empty. `onnx_files.save_model` writes it.
        unsupported: ops that are not translated: (TF node, op type, why).
        skipped_passes: tf2onnx's optimiser passes that crashed and were left out.
        weights: the values of the model's stand-ins, by key.
    """

    model: onnx.ModelProto
    unsupported: tuple[tuple[str, str, str], ...] = ()
    skipped_passes: tuple[str, ...] = ()
    weights: Mapping[str, Array] = field(default_factory=dict)


def translatable_ops(opset: int = OPSET) -> frozenset[str]:
    """TF op types that can be translated into what TensorFlow computes.

    Raises:
        ExportError: tf2onnx is missing or not the version that is supported.
    """
    with library():
        from tensorflow.python.framework import op_def_registry
        from tf2onnx.handler import tf_op

        known = frozenset(name for name in tf_op.create_mapping(opset, None) if op_def_registry.get(name) is not None)
    return (known | RULES.keys() | COMPLEX_RULES.keys()) - UNSAFE.keys() - FRAME


def translate(
    graph_def: tf.compat.v1.GraphDef,
    inputs: Sequence[str],
    outputs: Sequence[str],
    values: Mapping[str, Array] | None = None,
    *,
    opset: int = OPSET,
) -> Translation:
    """Translate a self-contained TF graph into ONNX.

    Args:
        graph_def: Placeholders at its boundary; may carry `_output_shapes`. Not changed.
        inputs: tensors of those Placeholders, as `op:0`.
        outputs: tensors to compute, as `op:1`; repeated ones, constants and inputs become outputs of their own.
        values: those, by node name, of further Placeholders of the graph, which become stand-ins in the model.

    Raises:
        ExportError: tf2onnx failed on the graph as a whole, or is not the version that is supported.
    """
    import tensorflow as tf

    if not outputs:
        raise ExportError("a graph without outputs can't be translated", "name the tensors to compute")
    with library() as records:
        large = dict(values or {})
        light = weights.lighten(graph_def, outputs)
        try:
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(light.graph_def, name="")
                in_ports = [_port(graph, name) for name in inputs]
                out_ports = [_port(graph, name) for name in outputs]
            # tf2onnx renames outputs that are also inputs, and can't be given one twice.
            computed = [name for name in dict.fromkeys(outputs) if name not in set(inputs)]
            if computed:
                folded = weights.fold(light, inputs, computed, large.keys())
                loops.limit_trips(folded.graph_def)
                expanded = expand(folded, RULES, COMPLEX_RULES)
                if refused := expanded.failed or unsafe_calls(expanded.light.graph_def):
                    return _refused(refused, expanded.light.origins, graph_def, opset)
                fed = [*inputs, *(f"{n.name}:0" for n in expanded.light.graph_def.node if n.name in large)]
                model, recorder, skipped = _convert(expanded.light, fed, computed, opset, records)
                large = external.attach(model, large)
            else:
                model, recorder, skipped = _empty(opset), Recorder(frozenset(), {}), ()
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(f"tf2onnx failed: {type(error).__name__}: {error}") from error
        for record in records:
            _log.debug("tf2onnx: %s", record.getMessage())
    complete(model.graph, {node.name for node in graph_def.node})
    finish(model, in_ports, out_ports)
    return Translation(model, _unsupported(graph_def, model, recorder, records), skipped, large)


def _convert(
    light: weights.LightGraph,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    records: list[logging.LogRecord],
) -> tuple[onnx.ModelProto, Recorder, tuple[str, ...]]:
    """Run tf2onnx; once again, without it, for every optimiser pass that crashes."""
    import tensorflow as tf
    from tf2onnx import tfonnx

    functions = light.graph_def.library.function
    names = {node.name for node in light.graph_def.node} | {n.name for f in functions for n in f.node_def}
    chosen = passes.default_passes()
    skipped: list[str] = []
    while True:
        records.clear()
        recorder = Recorder(names, light.origins)
        with tf.Graph().as_default() as graph, recorder.recording(), passes.without_needless_copies(bool(functions)):
            tf.import_graph_def(light.graph_def, name="")
            converted: Graph = tfonnx.process_tf_graph(
                graph,
                continue_on_error=True,
                opset=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                const_node_values=light.weights,
            )
            handlers.state_split_sizes(converted)
            recorder.stamp_rest(converted)
            try:
                converted = passes.optimise(converted, [name for name in chosen if name not in skipped])
            except passes.PassFailed as failure:
                _log.info("tf2onnx's pass %s crashed and is left out", failure.name, exc_info=failure)
                skipped.append(failure.name)
                continue
            return converted.make_model("", graph_name="region"), recorder, tuple(skipped)


def _refused(
    refused: Mapping[str, str], origins: Mapping[str, frozenset[str]], graph_def: tf.compat.v1.GraphDef, opset: int
) -> Translation:
    """What is known to have no right translation before tf2onnx is asked."""
    ops = {node.name: node.op for node in graph_def.node}
    named = {old: why for name, why in refused.items() for old in origins.get(name, frozenset((name,)))}
    return Translation(_empty(opset), tuple((name, ops.get(name, ""), why) for name, why in named.items()))


def _empty(opset: int) -> onnx.ModelProto:
    import onnx
    from tf2onnx.constants import OPSET_TO_IR_VERSION

    graph = onnx.helper.make_graph([], "region", [], [])
    opsets = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=OPSET_TO_IR_VERSION[opset])


def _port(graph: tf.Graph, name: str) -> Port:
    from tf2onnx.tf_utils import TF_TO_ONNX_DTYPE

    try:
        tensor = graph.get_tensor_by_name(name)
    except (KeyError, ValueError) as error:
        raise ExportError(f"{name}: is not a tensor of the graph", "name tensors as op:0") from error
    dtype = tensor.dtype.base_dtype
    if dtype.as_datatype_enum not in TF_TO_ONNX_DTYPE or dtype.is_complex or dtype.name in ("resource", "variant"):
        raise ExportError(
            f"{name}: {dtype.name} can't cross the boundary of an ONNX model", "leave the op in TensorFlow"
        )
    shape = None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
    return Port(name, TF_TO_ONNX_DTYPE[dtype.as_datatype_enum], shape)


def _unsupported(
    graph_def: tf.compat.v1.GraphDef, model: onnx.ModelProto, recorder: Recorder, records: Sequence[logging.LogRecord]
) -> tuple[tuple[str, str, str], ...]:
    """Ops that tf2onnx says it left or failed on, and nodes in the model that are no ONNX ops."""
    import onnx

    op_types = {node.name: node.op for node in graph_def.node}
    found: dict[str, tuple[str, str, str]] = {}

    def add(names: frozenset[str], op_type: str, message: str) -> None:
        for name in names:
            for node in (name,) if name in op_types else _callers(graph_def, name):
                found.setdefault(node, (node, op_types.get(node, op_type), message))

    for record in records:
        if record.msg == _LEFT and isinstance(record.args, tuple):
            node, op_type = (str(arg) for arg in record.args)
            add(recorder.origins_of(node), op_type, f"tf2onnx has no translation of {op_type}")
        elif record.msg == _FAILED and isinstance(record.args, tuple):
            cause = record.exc_info[1] if record.exc_info else None
            add(recorder.origins_of(str(record.args[0])), "", f"tf2onnx failed on it: {cause}")
    for proto in all_nodes(model.graph):
        if not onnx.defs.has(proto.op_type, proto.domain):
            add(tagged(proto), proto.op_type, f"tf2onnx left {proto.op_type}, which ONNX does not know")
    return tuple(found.values())


def _callers(graph_def: tf.compat.v1.GraphDef, name: str) -> list[str]:
    """Nodes of the graph that call, directly or not, a function with a node of this name."""
    functions = {function.signature.name: function for function in graph_def.library.function}
    holding = {key for key, function in functions.items() if any(node.name == name for node in function.node_def)}

    def called(node: tf.compat.v1.NodeDef) -> set[str]:
        return set(attribute_functions(node))

    while True:
        wider = {
            key for key, function in functions.items() if any(called(node) & holding for node in function.node_def)
        }
        if wider <= holding:
            break
        holding |= wider
    return [node.name for node in graph_def.node if called(node) & holding]
