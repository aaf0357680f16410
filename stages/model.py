"""A model that is open: its graph or traced function, its interface, and the errors of opening one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stages.artifacts import Source
from stages.errors import ModelError

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.compare import Array

DEFAULT_SIGNATURE = "serving_default"
KINDS = (
    "a SavedModel folder, a .keras, .h5, .hdf5, frozen .pb or TensorFlow.js .json file, a checkpoint's .meta file, "
    "or keras:NAME"
)

Scalar: TypeAlias = "bool | int | float | str"


@dataclass(frozen=True, slots=True)
class Fixed:
    """A former input, called `name` by the signature: the Placeholder `node` is a constant of this value now."""

    name: str
    node: str
    value: Array


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is open: its graph, and how the signature names what goes in and out.

    Attributes:
        source: where it came from.
        function: the traced signature, or None for a frozen .pb file.
        graph_def: a .pb file's graph, else None.
        inputs, outputs: tensors of the graph, as `op:0`; in order of their names, as SavedModel signatures have them,
            and for a .pb file in the order given.
        input_names, output_names: the signature's names for them.
        owner: the object that the variables and tables belong to, None if unknown.
        signatures: the owner's signatures by name, where it is to be saved with just these.
        others: the owner's other signatures; a variable that they write is no constant.
        fixed: former inputs that are constants now.
    """

    source: Source
    function: tf.types.experimental.ConcreteFunction | None
    graph_def: tf.compat.v1.GraphDef | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    owner: object = None
    others: tuple[tf.types.experimental.ConcreteFunction, ...] = ()
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction] = field(default_factory=dict)
    fixed: tuple[Fixed, ...] = ()


def from_function(
    function: tf.types.experimental.ConcreteFunction,
    source: Source,
    owner: object = None,
    others: Sequence[tf.types.experimental.ConcreteFunction] = (),
    signatures: Mapping[str, tf.types.experimental.ConcreteFunction] | None = None,
) -> Model:
    """A concrete function as a model, its inputs and outputs named and ordered as a SavedModel would.

    Args:
        others, signatures: see `Model`; given `signatures`, the other ones are `others`.

    Raises:
        ModelError: it returns nothing, or takes or gives a tensor in parts (ragged, sparse).
    """
    _refuse_composites(function)
    signatures = signatures or {}
    others = others or [other for other in signatures.values() if other is not function]
    captured = {id(tensor) for tensor in function.graph.internal_captures}
    tensors = [tensor for tensor in function.inputs if id(tensor) not in captured]
    keywords = [str(keyword) for keyword in getattr(function, "_arg_keywords", None) or ()]
    if len(keywords) < len(tensors):
        keywords = [tensor.op.name for tensor in tensors]
    ins = sorted(zip(keywords, (tensor.name for tensor in tensors), strict=False))
    outs = sorted(zip(_result_names(function), (tensor.name for tensor in function.outputs), strict=True))
    if not outs:
        raise ModelError(f"{function.graph.name}: returns nothing", "give a function that returns tensors")
    return Model(
        source,
        function,
        None,
        tuple(tensor for _, tensor in ins),
        tuple(tensor for _, tensor in outs),
        tuple(name for name, _ in ins),
        tuple(name for name, _ in outs),
        owner,
        tuple(others),
        signatures,
    )


def _refuse_composites(function: tf.types.experimental.ConcreteFunction) -> None:
    import tensorflow as tf

    parts = (tf.RaggedTensor, tf.SparseTensor, tf.RaggedTensorSpec, tf.SparseTensorSpec, tf.IndexedSlicesSpec)
    for side, structure in (
        ("takes", function.structured_input_signature),
        ("gives", function.structured_outputs),
    ):
        for item in tf.nest.flatten(structure):
            if isinstance(item, parts):
                kind = type(item).__name__.removesuffix("Spec")
                raise ModelError(
                    f"{function.graph.name}: {side} a {kind}, which a signature can't have",
                    "wrap it in a function of dense tensors (values and row lengths, or indices and values)",
                )


def _result_names(function: tf.types.experimental.ConcreteFunction) -> list[str]:
    """What a SavedModel calls the results: a mapping's keys (TensorFlow flattens them sorted), else `output_<i>`."""
    results = function.structured_outputs
    if hasattr(results, "_asdict"):
        names = list(results._asdict())
    elif isinstance(results, Mapping):
        names = sorted(str(key) for key in results)
    else:
        names = []
    count = len(function.outputs)
    return names if len(names) == count else [f"output_{index}" for index in range(count)]


def unreadable(path: Path, error: Exception, remedy: str) -> ModelError:
    """The ModelError for a library's exception while reading `path`."""
    text = first_line(error)
    if "Op type not registered" in text or "not registered in" in text:
        op = text.partition("Op type not registered")[2].partition("'")[2].partition("'")[0]
        return ModelError(
            f"{path}: uses the op {op or 'named below'}, which is not loaded: {text}",
            "--op-library with its .so file (in Python: tf.load_op_library, or import the package that brings it)",
        )
    if "MetaGraph" in text and "tags" in text:
        return ModelError(f"{path}: {text}", "--tags with those that it was saved with")
    return ModelError(f"{path}: can't be read: {text or type(error).__name__}", remedy)


def close_matches(name: str, known: Iterable[str]) -> str:
    """`one of a, b` with the most similar names first, for a remedy."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:20]
    return f"one of {', '.join(close)}" if close else "nothing: there are none"


def first_line(error: Exception) -> str:
    """An exception's message on one line, at most 300 characters."""
    return re.sub(r"\s+", " ", str(error)).strip()[:300]
