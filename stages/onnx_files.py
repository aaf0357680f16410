"""ONNX models on disk. Large weights lie in one file beside the model, which is named after its content.

A protobuf holds 2 GiB at most, and a model is held several times over while it is made. So in memory too a large weight
is only a *stand-in*: an initialiser without a value, whose location is a key into a mapping from keys to arrays. These
are mapped files, and are read block by block when the model is written.

The weights' file is `<SHA-256 of its content>.weights`. So the digest of the small `.onnx` file, which names it, covers
the weights, and files of several models may lie in one folder.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.errors import ExportError
from stages.storage import sha256_file

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array

WEIGHTS_SUFFIX = ".weights"
_BLOCK_BYTES = 16 << 20
_ALIGNMENT = 4096
"""Readers map the file: weights begin at the beginning of a page."""


def stand_in(name: str, data_type: int, shape: tuple[int, ...], key: str) -> onnx.TensorProto:
    """An initialiser without a value: `key` says which one of the arrays that go with the model it is."""
    import onnx

    tensor = onnx.TensorProto(name=name, data_type=data_type, dims=shape, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=key)
    return tensor


def key_of(tensor: onnx.TensorProto) -> str | None:
    """The key of a stand-in; None for an initialiser that has its value with it."""
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return next(entry.value for entry in tensor.external_data if entry.key == "location")


def save_model(model: onnx.ModelProto, path: Path, weights: Mapping[str, Array] | None = None) -> None:
    """Write a model as `path`, and the values of its stand-ins into one file beside it.

    The model is as before afterwards. No weight is copied into memory as a whole.

    Args:
        weights: an array for each stand-in, by key; of the ONNX type's size per element.

    Raises:
        ExportError: the files can't be written.
    """
    stand_ins = [(tensor, key) for tensor in model.graph.initializer if (key := key_of(tensor)) is not None]
    try:
        if stand_ins:
            assert weights is not None
            places, file = _write_weights(path.parent, {key: weights[key] for _, key in stand_ins})
            for tensor, key in stand_ins:
                _locate(tensor, file, *places[key])
        path.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise ExportError(
            f"{path}: {error.strerror or error}", "free some disk space or check the permissions"
        ) from error
    finally:
        for tensor, key in stand_ins:
            _locate(tensor, key)


def load_model(path: Path) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A model that `save_model` wrote, with stand-ins for the weights beside it, and these, mapped, by key (their names)."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    weights: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        location = key_of(tensor)
        if location is None:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        size = math.prod(tensor.dims) * dtype.itemsize
        data = np.memmap(path.with_name(location), np.uint8, "r", int(entries.get("offset", 0)), (size,))
        weights[tensor.name] = data.view(dtype).reshape(tuple(tensor.dims))
        _locate(tensor, tensor.name)
    return model, weights


def as_one_file(path: Path) -> bytes:
    """A model that `save_model` wrote, its weights inside: for models of less than protobuf's 2 GiB."""
    model, weights = load_model(path)
    for tensor in model.graph.initializer:
        if (key := key_of(tensor)) is not None:
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
            tensor.raw_data = weights[key].tobytes()
    return bytes(model.SerializeToString(deterministic=True))


def files_beside(path: Path) -> tuple[Path, ...]:
    """The files that hold weights of an ONNX model, beside it."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    names = dict.fromkeys(key for tensor in graph.initializer if (key := key_of(tensor)) is not None)
    return tuple(path.with_name(name) for name in names)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a model that `save_model` wrote, weights included: their file's name is theirs."""
    return sha256_file(path)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of all but the initializers of the main graph."""
    import onnx

    copy = onnx.ModelProto()
    _copy_fields(model, copy, "graph")
    _copy_fields(model.graph, copy.graph, "initializer")
    return copy


def _locate(tensor: onnx.TensorProto, location: str, offset: int | None = None, length: int | None = None) -> None:
    tensor.ClearField("external_data")
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))


def _write_weights(folder: Path, weights: Mapping[str, Array]) -> tuple[dict[str, tuple[int, int]], str]:
    """Where each array lies in the file (offset, length), and the file's name."""
    partial = folder / f"partial{WEIGHTS_SUFFIX}"
    places: dict[str, tuple[int, int]] = {}
    found = hashlib.sha256()
    with partial.open("wb") as file:
        for key, array in weights.items():
            gap = b"\0" * (-file.tell() % _ALIGNMENT)
            file.write(gap)
            found.update(gap)
            places[key] = file.tell(), array.nbytes
            for block in _blocks(array):
                file.write(block)
                found.update(block)
    name = found.hexdigest() + WEIGHTS_SUFFIX
    partial.rename(folder / name)
    return places, name


def _blocks(array: Array) -> Iterator[memoryview]:
    """An array's bytes in C order, a few MiB at a time: it may be a mapped file, or such a file transposed."""
    if array.nbytes <= _BLOCK_BYTES or array.flags.c_contiguous:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, flat.size, _BLOCK_BYTES):
            yield flat[start : start + _BLOCK_BYTES].data
        return
    rows = max(1, _BLOCK_BYTES * len(array) // array.nbytes)
    for start in range(0, len(array), rows):
        yield from _blocks(array[start] if rows == 1 else array[start : start + rows])


def _copy_fields(
    source: onnx.ModelProto | onnx.GraphProto, target: onnx.ModelProto | onnx.GraphProto, omit: str
) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name == omit:
            continue
        if isinstance(value, Iterable) and not isinstance(value, str | bytes):
            getattr(target, descriptor.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)
