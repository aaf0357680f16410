"""Open what TensorFlow 1 saved: SavedModels without TensorFlow 2's objects, and checkpoints with their MetaGraph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import Source, Tensor
from stages.checkpoints import prefix_of
from stages.errors import ModelError
from stages.model import Model, first_line, from_function, unreadable
from stages.signature_defs import with_own_names
from stages.tensor_names import guess_output, known, label, needed
from stages.tf1.modern import modernize
from stages.tf1.signature import Signature, cut_out, make_function
from stages.tf1.state import Checkpoint, restore

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, TensorInfo

_INIT = "__saved_model_init_op"
_NOT_SERVED = {_INIT, "__saved_model_train_op"}


def open_saved_model(path: Path, meta: MetaGraphDef, signature: str, tags: tuple[str, ...]) -> Model:
    """One signature of a TensorFlow 1 SavedModel, with all of them beside it.

    Args:
        meta: the MetaGraph with these tags; it is changed.
        signature: one of `signature_names(meta)`.

    Raises:
        ModelError: the graph or its variables can't be read, or a signature takes or gives sparse tensors.
    """
    prefix = path / "variables" / "variables"
    has_variables = meta.HasField("saver_def") and prefix.with_suffix(".index").exists()
    if meta.HasField("saver_def") and not has_variables:
        raise ModelError(f"{path}: its folder variables/ is missing or incomplete", "copy the whole folder again")
    checkpoint = Checkpoint(
        str(prefix) if has_variables else None, meta.saver_def, _initializers(meta), _assets(path, meta)
    )
    signatures = {name: _signature(path, name, meta.signature_def[name]) for name in signature_names(meta)}
    source = Source("meta_graph", str(path), signature, tags)
    return _open(meta, signatures, checkpoint, source)


def signature_names(meta: MetaGraphDef) -> list[str]:
    """The signatures that serve, in order of their names."""
    return sorted(name for name in meta.signature_def if name not in _NOT_SERVED and meta.signature_def[name].outputs)


def open_checkpoint(
    path: Path, inputs: Sequence[str] | None, outputs: Sequence[str] | None, also_fed: Sequence[str] = ()
) -> Model:
    """A TensorFlow 1 checkpoint with its MetaGraph.

    Args:
        path: the `.meta` file; the checkpoint lies beside it.
        inputs: tensors as `op:0` or `op`, of any op; by default every Placeholder that the outputs depend on.
        outputs: likewise; by default the result of the only op whose result nothing but training reads.
        also_fed: more inputs, besides those that are given or found.

    Raises:
        ModelError: a file is missing or damaged, a name is unknown, or inputs or outputs can't be guessed.
    """
    meta = _read(path)
    prefix = prefix_of(path)
    nodes = {node.name: node for node in meta.graph_def.node}
    fetched = known(path, outputs, nodes, "--outputs") if outputs else [guess_output(path, meta.graph_def)]
    if inputs:
        fed = known(path, inputs, nodes, "--inputs")
    else:
        used = needed(nodes, fetched, ())
        fed = [f"{name}:0" for name in nodes if nodes[name].op == "Placeholder" and name in used]
    fed += [tensor for tensor in known(path, also_fed, nodes, "--constant") if tensor not in fed]
    signature = Signature(
        {label(tensor): _fed(path, meta.graph_def, tensor) for tensor in fed},
        {label(tensor): tensor for tensor in fetched},
    )
    source = Source("meta_graph", str(path))
    tables = meta.collection_def["table_initializer"].node_list.value
    return _open(meta, {source.signature: signature}, Checkpoint(prefix, meta.saver_def, tuple(tables)), source)


def _open(meta: MetaGraphDef, signatures: Mapping[str, Signature], checkpoint: Checkpoint, source: Source) -> Model:
    import tensorflow as tf

    subject = str(source.path)
    outputs = [tensor for signature in signatures.values() for tensor in signature.outputs.values()]
    modernize(meta.graph_def, meta.meta_info_def.stripped_op_list, outputs)
    pieces = {name: cut_out(meta.graph_def, signature, subject) for name, signature in signatures.items()}
    owner = tf.Module()
    state = dict.fromkeys(node for piece in pieces.values() for node in piece.state)
    handles = restore(subject, meta.graph_def, state, checkpoint, owner)
    functions = {}
    for name, piece in pieces.items():
        try:
            functions[name] = make_function(piece, signatures[name], handles)
        except (KeyError, TypeError, ValueError, tf.errors.OpError) as error:
            remedy = "save the model again with a TensorFlow that reads it"
            raise unreadable(Path(subject), error, remedy) from error
    model = from_function(functions[source.signature], source, owner, signatures=functions)
    return with_own_names(model, signatures[source.signature].inputs)


def _signature(path: Path, name: str, definition: object) -> Signature:
    inputs = {key: _tensor(path, key, info) for key, info in definition.inputs.items()}  # type: ignore[attr-defined]
    outputs = {key: _tensor(path, key, info).name for key, info in definition.outputs.items()}  # type: ignore[attr-defined]
    return Signature(inputs, outputs)


def _tensor(path: Path, key: str, info: TensorInfo) -> Tensor:
    import tensorflow as tf

    if info.WhichOneof("encoding") != "name":
        raise ModelError(
            f"{path}: {key} is a sparse or ragged tensor, which a signature can't have here",
            "save a signature that takes and gives dense tensors (indices and values, say)",
        )
    shape = tf.TensorShape(info.tensor_shape)
    return Tensor(info.name, tf.as_dtype(info.dtype).name, None if shape.rank is None else tuple(shape.as_list()))


def _fed(path: Path, graph_def: tf.compat.v1.GraphDef, tensor: str) -> Tensor:
    """What a tensor is that is to be an input."""
    import tensorflow as tf

    node = next(node for node in graph_def.node if node.name == tensor.partition(":")[0])
    if node.op in ("Placeholder", "PlaceholderWithDefault"):
        shape = tf.TensorShape(node.attr["shape"].shape)
        return Tensor(tensor, tf.as_dtype(node.attr["dtype"].type).name, _sizes(shape))
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(_without_marks(graph_def), name="")
        found = graph.get_tensor_by_name(tensor)
    except (KeyError, ValueError, tf.errors.OpError) as error:
        raise ModelError(f"{path}: {tensor} can't be an input: {first_line(error)}", "name another tensor") from error
    return Tensor(tensor, found.dtype.base_dtype.name, _sizes(found.shape))


def _sizes(shape: tf.TensorShape) -> tuple[int | None, ...] | None:
    return None if shape.rank is None else tuple(shape.as_list())


def _without_marks(graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    for node in copy.node:
        for attribute in ("_class", "_output_shapes"):
            node.attr.pop(attribute, None)
    return copy


def _read(path: Path) -> MetaGraphDef:
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

    meta = MetaGraphDef()
    try:
        content = path.read_bytes()
        try:
            meta.ParseFromString(content)
        except DecodeError:
            text_format.Parse(content.decode(), meta)  # as `as_text=True` writes it
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise ModelError(f"{path}: is no MetaGraph, or is cut off", "copy or save it again") from error
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror}", "check the file's permissions") from error
    if not meta.graph_def.node:
        raise ModelError(f"{path}: holds an empty graph", "save it again, with write_meta_graph=True")
    return meta


def _initializers(meta: MetaGraphDef) -> tuple[str, ...]:
    """The op that TensorFlow runs when it has restored the variables."""
    if _INIT in meta.signature_def:
        return (meta.signature_def[_INIT].outputs[_INIT].name,)
    for key in ("saved_model_main_op", "legacy_init_op"):
        if key in meta.collection_def:
            return tuple(meta.collection_def[key].node_list.value)
    return ()


def _assets(path: Path, meta: MetaGraphDef) -> dict[str, str]:
    """The file for each tensor that holds an asset's path."""
    from tensorflow.core.protobuf.meta_graph_pb2 import AssetFileDef

    entries = list(meta.asset_file_def)
    for packed in meta.collection_def["saved_model_assets"].any_list.value if not entries else ():
        entry = AssetFileDef()
        packed.Unpack(entry)
        entries.append(entry)
    return {entry.tensor_info.name: str(path / "assets" / entry.filename) for entry in entries}
