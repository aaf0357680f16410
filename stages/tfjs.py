"""Read a TensorFlow.js graph model: a GraphDef in JSON, and its weights in files beside it.

Source: `graph_model.ts`, `weights_loader.ts` and `io_utils.ts` of TensorFlow.js. Layers models (Keras's configuration
in JSON) are not read.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stages.errors import ModelError
from stages.model import first_line

if TYPE_CHECKING:
    import tensorflow as tf

SUFFIX = ".json"
_REMEDY = "give the model.json of a TensorFlow.js graph model, with its weight files beside it"
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "?", "complex64": "<c8"}
_QUANTIZED = {"uint8": "u1", "uint16": "<u2", "float16": "<f2"}


@dataclass(frozen=True, slots=True)
class GraphModel:
    """A graph with its weights, and what its signature names as inputs and outputs (tensors; empty: it names none)."""

    graph_def: tf.compat.v1.GraphDef
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read(path: Path) -> GraphModel:
    """Read `model.json` and its weights; what was quantized becomes what it was before.

    Raises:
        ModelError: it is another kind of JSON, a weight file is missing or too short, or TensorFlow can't know the graph.
    """
    import tensorflow as tf
    from google.protobuf import json_format

    try:
        content = json.loads(path.read_bytes())
        topology = content["modelTopology"]
        manifest = content["weightsManifest"]
        if "node" not in topology:
            raise ModelError(f"{path}: is no graph model, but a layers model of TensorFlow.js", _REMEDY)
        graph_def = json_format.ParseDict(topology, tf.compat.v1.GraphDef(), ignore_unknown_fields=True)
        values = {name: value for group in manifest for name, value in _weights(path, group)}
    except (OSError, KeyError, TypeError, ValueError, struct.error, json_format.ParseError) as error:
        raise ModelError(f"{path}: is no graph model of TensorFlow.js: {first_line(error)}", _REMEDY) from error
    if not graph_def.versions.producer:  # a graph without versions would be read as one of 2015
        graph_def.versions.producer = tf.version.GRAPH_DEF_VERSION
    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        for node in nodes:
            node.device = ""  # the converter's machine is not this one
            if node.op == "Const" and node.name in values:
                dtype = tf.as_dtype(node.attr["dtype"].type)
                value = np.asarray(values[node.name]).astype(dtype.as_numpy_dtype)
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype))
    signature = content.get("signature") or {}
    return GraphModel(graph_def, _tensors(signature.get("inputs")), _tensors(signature.get("outputs")))


def weight_files(path: Path) -> list[Path]:
    """The files beside a `model.json` that hold its weights, as far as they are there; none for another kind of JSON."""
    try:
        manifest = json.loads(path.read_bytes())["weightsManifest"]
        files = [path.parent / name for group in manifest for name in group["paths"]]
    except (OSError, KeyError, TypeError, ValueError):
        return []
    return [file for file in files if file.is_file()]


def _tensors(entries: Mapping[str, Mapping[str, str]] | None) -> tuple[str, ...]:
    return tuple(entry.get("name", name) for name, entry in sorted((entries or {}).items()))


def _weights(path: Path, group: Mapping[str, Any]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The weights of one group of files, which belong together as if they were one."""
    for name in group["paths"]:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"{path}: its weight file {name} lies outside its folder", "do not use it")
    data = b"".join((path.parent / name).read_bytes() for name in group["paths"])
    position = 0
    for weight in group["weights"]:
        value, size = _weight(weight, data, position)
        yield weight["name"], value
        position += size


def _weight(weight: Mapping[str, Any], data: bytes, position: int) -> tuple[npt.NDArray[Any], int]:
    """One weight, and the bytes it takes."""
    shape = tuple(weight["shape"])
    count = math.prod(shape)
    if weight["dtype"] == "string":
        strings, end = [], position
        for _ in range(count):
            (length,) = struct.unpack_from("<I", data, end)
            strings.append(data[end + 4 : end + 4 + length])
            end += 4 + length
        return np.array(strings, object).reshape(shape), end - position
    quantization = weight.get("quantization")
    stored = np.dtype(_QUANTIZED[quantization["dtype"]] if quantization else _DTYPES[weight["dtype"]])
    value: npt.NDArray[Any] = np.frombuffer(data, stored, count, position).reshape(shape)
    if quantization:
        value = value.astype(np.float32)
        if "scale" in quantization:
            value = value * np.float32(quantization["scale"]) + np.float32(quantization["min"])
        if weight["dtype"] == "int32":
            value = np.rint(value)
        value = value.astype(_DTYPES[weight["dtype"]])
    return value, count * stored.itemsize
