"""A model's last touches: GraftRT's names at its boundary, TensorFlow's dtypes and sizes there, and an order and names
of nodes that depend on nothing but the graph, so that equal regions have equal digests in every process.

These edit the protobuf in place. graph-surgeon 0.6 could do most of it, but its round trip drops `doc_string`, where
the provenance is, fails on empty list attributes, and copies all weights twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.artifacts import Shape
from stages.translate.provenance import all_nodes, bodies, tag

if TYPE_CHECKING:
    import onnx

_COUNTER = re.compile(r"__\d+")
_INFERENCE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor at the boundary: TensorFlow's name, ONNX's data type, sizes; `shape` None if the rank is unknown."""

    tensor: str
    dtype: int
    shape: Shape | None


def finish(model: onnx.ModelProto, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
    """Give a converted model its interface, in place: inputs `input_<i>` (unused ones go), outputs `output_<i>`.

    Open axes are named `input_<i>_axis_<k>`, each by its own name, since equal names promise TensorRT equal sizes; an
    output's open axis has the name of the input axis that it is known to equal, else one of its own.

    Args:
        model: from tf2onnx; its inputs and outputs are named by TF tensor.
    """
    import onnx

    graph = model.graph
    ends = _separate_outputs(graph, outputs)
    _sort(graph, ends)
    names = {port.tensor: f"input_{index}" for index, port in enumerate(inputs)}
    names |= {tensor: f"output_{index}" for index, tensor in enumerate(ends)}
    _rename(graph, names, _Namer(set(names.values())))
    used = {tensor for node in all_nodes(graph) for tensor in node.input}
    del graph.input[:], graph.output[:]
    for index, port in enumerate(inputs):
        if f"input_{index}" in used:
            graph.input.append(_value_info(f"input_{index}", port, {}))
    dtypes, sizes = _infer(model, len(outputs))
    for index, port in enumerate(outputs):
        name = f"output_{index}"
        if dtypes.get(name, port.dtype) not in (port.dtype, onnx.TensorProto.UNDEFINED):
            _cast(graph, name, port.dtype)
        graph.output.append(_value_info(name, port, sizes.get(name, {})))
    domains = {node.domain for node in all_nodes(graph)} | {""}
    opsets = [opset for opset in model.opset_import if opset.domain in domains]
    del model.opset_import[:]
    model.opset_import.extend(opsets)


def _separate_outputs(graph: onnx.GraphProto, outputs: Sequence[Port]) -> list[str]:
    """One tensor, made by a node, for each output: inputs, constants and earlier outputs get an Identity."""
    import onnx

    made = {tensor for node in graph.node for tensor in node.output}
    ends: list[str] = []
    for index, port in enumerate(outputs):
        end = port.tensor
        if end not in made or end in ends:
            end = f"{port.tensor}/output_{index}"
            node = onnx.helper.make_node("Identity", [port.tensor], [end], name=end)
            tag(node, {port.tensor.split(":")[0]})
            graph.node.append(node)
        ends.append(end)
    return ends


def _sort(graph: onnx.GraphProto, ends: Sequence[str]) -> None:
    """Order nodes and initialisers as a depth-first walk from the outputs meets them, and drop the others."""
    import onnx

    producers = {tensor: index for index, node in enumerate(graph.node) for tensor in node.output if tensor}
    needs: list[list[int]] = []
    for node in graph.node:
        tensors = list(node.input)
        for body in bodies(node):
            body_ends = [value.name for value in body.output]
            _sort(body, body_ends)
            tensors += [tensor for inner in all_nodes(body) for tensor in inner.input] + body_ends
        needs.append([producers[tensor] for tensor in tensors if tensor in producers])
    order: dict[int, None] = {}
    visited: set[int] = set()
    todo = [(producers[tensor], False) for tensor in reversed(ends) if tensor in producers]
    while todo:
        index, ready = todo.pop()
        if ready:
            order[index] = None
        elif index not in visited:
            visited.add(index)
            todo.append((index, True))
            todo += [(source, False) for source in reversed(needs[index]) if source not in visited]
    sorted_graph = onnx.GraphProto()
    sorted_graph.node.extend(graph.node[index] for index in order)
    del graph.node[:]
    graph.node.extend(sorted_graph.node)
    del graph.value_info[:]

    first_use: dict[str, int] = {}
    for tensor in [tensor for node in all_nodes(graph) for tensor in node.input] + list(ends):
        first_use.setdefault(tensor, len(first_use))
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in first_use:
            del graph.initializer[index]
    graph.initializer.sort(key=lambda tensor: first_use[tensor.name])


class _Namer:
    """Hands out each name once, less the counters that tf2onnx appends."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._next: dict[str, int] = {}

    def new(self, old: str) -> str:
        stem = _COUNTER.sub("", old) or "unnamed"
        name = stem
        while name in self._taken:
            self._next[stem] = self._next.get(stem, 0) + 1
            name = f"{stem}__{self._next[stem]}"
        self._taken.add(name)
        return name


def _rename(graph: onnx.GraphProto, names: Mapping[str, str], namer: _Namer) -> None:
    """Rename every node and tensor of a sorted graph, constants after who reads them first.

    Args:
        names: what is decided, and the tensors around a body.
    """
    scope = dict(names)
    for value in graph.input:
        if value.name not in names:
            scope[value.name] = namer.new(value.name)
        value.name = scope[value.name]
    # Not its own name: which of equal constants Grappler keeps differs from call to call.
    readers: dict[str, str] = {}
    for node in all_nodes(graph):
        for index, tensor_name in enumerate(node.input):
            readers.setdefault(tensor_name, f"{node.name or node.op_type}/input_{index}")
    for tensor in graph.initializer:
        scope[tensor.name] = namer.new(readers.get(tensor.name, "constant"))
        tensor.name = scope[tensor.name]
    for node in graph.node:
        node.name = namer.new(node.name or node.op_type)
        for index, tensor_name in enumerate(node.output):
            if tensor_name and tensor_name not in names:
                scope[tensor_name] = namer.new(f"{node.name}:{index}")
    for node in graph.node:
        node.input[:] = [scope.get(tensor_name, tensor_name) for tensor_name in node.input]
        node.output[:] = [scope.get(tensor_name, tensor_name) for tensor_name in node.output]
        for body in bodies(node):
            body.name = namer.new(f"{node.name}/body")
            _rename(body, scope, namer)
    for value in graph.output:
        value.name = scope.get(value.name, value.name)


def _value_info(name: str, port: Port, known: Mapping[int, str]) -> onnx.ValueInfoProto:
    import onnx

    shape = None
    if port.shape is not None:
        shape = [known.get(k, f"{name}_axis_{k}") if size is None else size for k, size in enumerate(port.shape)]
    return onnx.helper.make_tensor_value_info(name, port.dtype, shape)


def _infer(model: onnx.ModelProto, outputs: int) -> tuple[dict[str, int], dict[str, dict[int, str]]]:
    """What ONNX's shape inference says of the outputs: data types, and per axis the input axis that it equals."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = "inference"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    symbols = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    for tensor in model.graph.initializer:
        size = 1
        for dim in tensor.dims:
            size *= dim
        if size > _INFERENCE_BYTES:  # a weight, whose values decide no shape
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            light.graph.initializer.append(tensor)
    light.graph.output.extend(onnx.helper.make_empty_tensor_value_info(f"output_{index}") for index in range(outputs))
    try:
        inferred = onnx.shape_inference.infer_shapes(light)
    except (
        onnx.shape_inference.InferenceError
    ):  # an op that tf2onnx left, or one that ONNX finds wrong: the parser will say
        return {}, {}
    dtypes = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.output}
    sizes = {
        value.name: {
            axis: dim.dim_param
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
            if dim.dim_param and dim.dim_param in symbols
        }
        for value in inferred.graph.output
    }
    return dtypes, sizes


def _cast(graph: onnx.GraphProto, output: str, dtype: int) -> None:
    """Make an output that tf2onnx gave another data type TensorFlow's."""
    import onnx

    raw = f"{output}_uncast"
    for node in graph.node:
        node.input[:] = [raw if tensor == output else tensor for tensor in node.input]
        if output in node.output:
            node.output[:] = [raw if tensor == output else tensor for tensor in node.output]
            doc = node.doc_string
    graph.node.append(onnx.helper.make_node("Cast", [raw], [output], name=f"{output}_cast", to=dtype, doc_string=doc))
