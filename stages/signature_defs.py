"""The protobuf of a SavedModel: its graphs by tags, and the parts of a signature that TensorFlow's saving forgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import ModelError
from stages.model import KINDS, Model, unreadable

if TYPE_CHECKING:
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, SignatureDef
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel


def read(path: Path) -> SavedModel:
    """The protobuf of the SavedModel in a folder.

    Raises:
        ModelError: there is none, or it is damaged.
    """
    from tensorflow.python.saved_model import loader_impl

    if not is_saved_model(path):
        raise ModelError(f"{path}: holds no SavedModel (saved_model.pb)", f"give {KINDS}")
    try:
        message: SavedModel = loader_impl.parse_saved_model(str(path))
    # Besides OSError for bad protobufs, it lets text_format's and TensorFlow's own errors through.
    except Exception as error:
        raise unreadable(path, error, "copy the folder again, or save the model again") from error
    if not message.meta_graphs:
        raise ModelError(f"{path}: holds an empty SavedModel", "save the model again")
    return message


def is_saved_model(path: Path) -> bool:
    """Whether a folder holds a SavedModel."""
    return (path / "saved_model.pb").exists() or (path / "saved_model.pbtxt").exists()


def choose(path: Path, message: SavedModel, tags: Iterable[str] | None) -> MetaGraphDef:
    """The graph with exactly these tags; None: the only one, else that with `serve`.

    Raises:
        ModelError: there is none.
    """
    graphs = {frozenset(graph.meta_info_def.tags): graph for graph in message.meta_graphs}
    if tags is None:
        tags = next(iter(graphs)) if len(graphs) == 1 else {"serve"}
    graph = graphs.get(frozenset(tags))
    if graph is None:
        known = " or ".join(sorted(",".join(sorted(found)) for found in graphs))
        raise ModelError(f"{path}: has no graph with the tags {','.join(tags)}", f"--tags {known}")
    return graph


def argument_names(names: Iterable[str]) -> dict[str, str]:
    """For each input of a signature the name of a function's argument: a graph allows any text as an input's name.

    TensorFlow makes the same of it, so that a loaded signature may be called with either.
    """
    found: dict[str, str] = {}
    for name in sorted(names):
        argument = "".join(letter if letter.isalnum() else "_" for letter in name)
        argument = argument if argument[:1].isalpha() else f"arg_{argument}"
        while argument in found.values():
            argument += "_"
        found[name] = argument
    return found


def with_own_names(model: Model, inputs: Iterable[str]) -> Model:
    """The model with its signature's own names for the inputs, instead of the arguments' names."""
    own = {argument: name for name, argument in argument_names(inputs).items()}
    return replace(model, input_names=tuple(own.get(name, name) for name in model.input_names))


def restore_details(
    saved_model: Path, tags: Iterable[str], original: Path | None, inputs: Mapping[str, Iterable[str]]
) -> None:
    """Give a SavedModel that was just saved its tags, and what its signatures had besides tensors: names of inputs that
    are no arguments' names, method names (`tensorflow/serving/classify`) and default values.

    Args:
        original: folder of the SavedModel that it was made from; None, or gone: its details are not known.
        inputs: signature to the names of its inputs, where they are not those in the original.
    """
    message = read(saved_model)
    graph = message.meta_graphs[0]
    before = message.SerializeToString(deterministic=True)
    tags = tuple(tags)
    if set(graph.meta_info_def.tags) != set(tags):
        graph.meta_info_def.tags[:] = tags
    old = {}
    if original is not None and is_saved_model(original):
        old = choose(original, read(original), tags).signature_def
    for name, signature in graph.signature_def.items():
        if name.startswith("__"):
            continue
        names = inputs.get(name, old[name].inputs if name in old else ())
        renamed = {argument: own for own, argument in argument_names(names).items() if own != argument}
        _rename_inputs(signature, renamed)
        if name in old:
            signature.method_name = old[name].method_name
            for key, value in old[name].defaults.items():
                if key in signature.inputs:
                    signature.defaults[key].CopyFrom(value)
                    _default(graph, signature.inputs[key].name.partition(":")[0], value)
    after = message.SerializeToString(deterministic=True)
    if after != before:
        (saved_model / "saved_model.pb").write_bytes(after)
        (saved_model / "fingerprint.pb").unlink(missing_ok=True)


def _rename_inputs(signature: SignatureDef, renamed: Mapping[str, str]) -> None:
    for argument, own in renamed.items():
        if argument in signature.inputs:
            signature.inputs[own].CopyFrom(signature.inputs[argument])
            del signature.inputs[argument]


def _default(graph: MetaGraphDef, placeholder: str, value: TensorProto) -> None:
    """Let an input that a session doesn't feed have its default value, as TensorFlow saves it."""
    node = next(node for node in graph.graph_def.node if node.name == placeholder)
    if node.op == "Placeholder":
        constant = graph.graph_def.node.add(name=f"{placeholder}/input", op="Const")
        constant.attr["dtype"].type = value.dtype
        constant.attr["value"].tensor.CopyFrom(value)
        node.op = "PlaceholderWithDefault"
        node.input.append(constant.name)
