"""What type every tensor of an ONNX model has, and what the bodies of its loops and branches read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages.errors import BuildError
from stages.onnx_files import key_of, without_weights

if TYPE_CHECKING:
    import onnx


@dataclass(slots=True)
class Types:
    """Element type and shape of every named tensor, bodies of Loop and If included (names are unique in a model)."""

    elements: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    scopes: int = 0

    @staticmethod
    def of(model: onnx.ModelProto, subject: str) -> Types:
        import onnx

        # Types do not depend on large weights, with which inference would exceed the 2 GB limit of protobuf.
        light = without_weights(model)
        # Inference believes these remarks, wrong ones too.
        del light.graph.value_info[:]
        for tensor in model.graph.initializer:
            if key_of(tensor) is None and len(tensor.raw_data) <= 1024:
                light.graph.initializer.append(tensor)
            else:
                light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        try:
            inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError) as error:
            raise BuildError(
                f"{subject}: ONNX's type inference rejects the model: {error}", "convert in fp32"
            ) from error
        types = Types()
        types._collect(inferred.graph)
        return types

    def is_float(self, name: str) -> bool:
        """Whether a tensor is float32."""
        import onnx

        return self.elements.get(name) == onnx.TensorProto.FLOAT

    def _collect(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self.elements[tensor.name] = tensor.data_type
        for info in (*graph.input, *graph.value_info, *graph.output):
            kind = info.type.tensor_type
            if not kind.elem_type:
                continue
            self.elements[info.name] = kind.elem_type
            if kind.HasField("shape"):
                dims = kind.shape.dim
                self.lengths[info.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
        for node in graph.node:
            for body in bodies(node):
                self._collect(body)


def bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The subgraphs of a Loop, If or Scan."""
    return [
        body for attribute in node.attribute for body in (attribute.g, *attribute.graphs) if body.node or body.output
    ]


def captured(body: onnx.GraphProto) -> set[str]:
    """Names that a body may read from around it: a superset, which includes its own."""
    names = {name for node in body.node for name in node.input} | {output.name for output in body.output}
    for node in body.node:
        for inner in bodies(node):
            names |= captured(inner)
    return names


def names_read(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that nodes, or the bodies in them, may read."""
    found = list(nodes)
    names = {name for node in found for name in node.input}
    return names.union(*(captured(body) for node in found for body in bodies(node)))
