"""GraphDef in, GraphDef out, for programs of TensorFlow 1."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.report import Report
from pipeline.tftrt.conversion import Conversion, run
from pipeline.tftrt.shapes import open_beyond_first
from stages import stitch
from stages.artifacts import ShapeRange
from stages.errors import ArgumentError, ConversionError, ModelError
from stages.model import close_matches, first_line, unreadable

if TYPE_CHECKING:
    import tensorflow as tf

_NO_OUTPUTS = ("Const", "Placeholder", "PlaceholderWithDefault")


@dataclass(frozen=True, slots=True)
class FrozenSignature:
    """A SavedModel's graph without variables, the signature as it was saved, and the tensors that it returns."""

    graph_def: tf.compat.v1.GraphDef
    signature: object
    outputs: tuple[str, ...]


def graft(
    graph_def: tf.compat.v1.GraphDef,
    outputs: Sequence[object] | None,
    config: Config,
    batches: Sequence[tuple[int, int]] | None,
) -> tuple[tf.compat.v1.GraphDef, Report]:
    """Convert a frozen graph; the result holds its engines and is imported like any other, once
    `stages.engine_op.load()` was called. What is fetched keeps its name.

    Args:
        outputs: names of nodes or tensors, or tensors; of a node all results. None: of every node that nobody reads.
        batches: smallest and largest size of the open first axes in each profile; None: 1 to 32.

    Raises:
        ArgumentError: no such node; a Placeholder has open axes besides the first.
        ConversionError: as `pipeline.convert`; the result would hold more than 1 GiB.
    """
    conversion = converted(graph_def, outputs, config, batches)
    try:
        return embedded(conversion), replace(conversion.report, model="input_graph_def")
    finally:
        conversion.remove()


def converted(
    graph_def: tf.compat.v1.GraphDef,
    outputs: Sequence[object] | None,
    config: Config,
    batches: Sequence[tuple[int, int]] | None,
) -> Conversion:
    """As `graft`, but what a conversion wrote; whoever asks removes it."""
    if graph_def.ByteSize() > stitch.EMBEDDED_LIMIT_BYTES:
        raise _too_large()
    graph = _import(graph_def)
    fetched = _unread(graph) if outputs is None else [t for output in outputs for t in _results(graph, output)]
    if not fetched:
        raise ArgumentError("the graph has no output", "name the nodes that are fetched")
    shapes = _shapes(_placeholders(graph, fetched), batches)
    with tempfile.TemporaryDirectory(prefix="graftrt-graph-") as folder:
        path = Path(folder) / "graph.pb"
        path.write_bytes(graph_def.SerializeToString())
        names = dict.fromkeys(tensor.name for tensor in fetched)
        return run(path, replace(config, outputs=tuple(names), shapes=shapes))


def embedded(conversion: Conversion) -> tf.compat.v1.GraphDef:
    """A conversion's GraphDef.

    Raises:
        ConversionError: it would hold more than 1 GiB.
    """
    import tensorflow as tf

    model = conversion.folder / "model.pb"
    if not model.exists():
        raise _too_large()
    result = tf.compat.v1.GraphDef()
    result.ParseFromString(model.read_bytes())
    return result


def freeze_saved_model(folder: str, tags: Sequence[str], signature_key: str) -> FrozenSignature:
    """Read a SavedModel as TensorFlow 1 does, node names included, and make constants of its variables.

    Raises:
        ModelError: it can't be read, or has no such tags.
        ArgumentError: it has no such signature.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        try:
            meta = v1.saved_model.loader.load(session, list(tags), folder)
        except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
            raise unreadable(Path(folder), error, "give a SavedModel's folder and its tags") from error
        if signature_key not in meta.signature_def:
            raise ArgumentError(
                f"{folder}: has no signature {signature_key}",
                f"input_saved_model_signature_key with {close_matches(signature_key, meta.signature_def)}",
            )
        signature = meta.signature_def[signature_key]
        outputs = tuple(info.name for info in signature.outputs.values())
        ends = [*outputs, *(info.name for info in signature.inputs.values())]
        try:
            frozen = v1.graph_util.convert_variables_to_constants(
                session, session.graph.as_graph_def(add_shapes=True), sorted({name.partition(":")[0] for name in ends})
            )
        except (ValueError, tf.errors.OpError) as error:
            raise ModelError(f"{folder}: can't be frozen: {first_line(error)}", "use TrtGraphConverterV2") from error
    return FrozenSignature(frozen, signature, outputs)


def node_name(node: object) -> str:
    """The name of a node given by its name, by a tensor's name or as a tensor."""
    return str(getattr(node, "name", node)).partition(":")[0]


def _import(graph_def: tf.compat.v1.GraphDef) -> tf.Graph:
    import tensorflow as tf

    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(graph_def, name="")
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise unreadable(Path("input_graph_def"), error, "freeze the graph again") from error
    return graph


def _results(graph: tf.Graph, output: object) -> list[tf.Tensor]:
    """All results of the op that an output belongs to: then each keeps its name. A Placeholder stays in any case."""
    name = node_name(output)
    known = {op.name: op for op in graph.get_operations()}
    if name not in known:
        raise ArgumentError(f"outputs: the graph has no node {name}", close_matches(name, known))
    return [] if known[name].type == "Placeholder" else list(known[name].outputs)


def _unread(graph: tf.Graph) -> list[tf.Tensor]:
    """What TF-TRT keeps where no output is named: the results of every node that nobody reads."""
    operations = graph.get_operations()
    read = {other.name for op in operations for other in (*(tensor.op for tensor in op.inputs), *op.control_inputs)}
    return [t for op in operations if op.name not in read and op.type not in _NO_OUTPUTS for t in op.outputs]


def _too_large() -> ConversionError:
    return ConversionError(
        "the GraphDef would hold more than 1 GiB of plans and weights",
        "convert a SavedModel with TrtGraphConverterV2 or pipeline.convert: plans are files there",
    )


def _placeholders(graph: tf.Graph, fetched: Iterable[tf.Tensor]) -> list[tf.Tensor]:
    """The Placeholders that the fetched tensors depend on."""
    pending = [tensor.op for tensor in fetched]
    seen: dict[str, tf.Operation] = {}
    while pending:
        op = pending.pop()
        if op.name not in seen:
            seen[op.name] = op
            pending += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    return [op.outputs[0] for op in graph.get_operations() if op.name in seen and op.type == "Placeholder"]


def _shapes(inputs: Sequence[tf.Tensor], batches: Sequence[tuple[int, int]] | None) -> tuple[ShapeRange, ...]:
    ranges = []
    for tensor in inputs:
        if open_beyond_first(tensor.shape):
            raise ArgumentError(
                f"{tensor.name}: shape {tensor.shape} has open axes besides the first, and no range for them",
                "freeze it with their sizes, or write the GraphDef and use pipeline.convert with Config(shapes=…)",
            )
        sizes = tensor.shape.as_list()
        if batches is not None and sizes and sizes[0] is None:
            ranges += [
                ShapeRange(tensor.name, (low, *sizes[1:]), (high, *sizes[1:]), (high, *sizes[1:]))
                for low, high in batches
            ]
    return tuple(ranges)
