"""One ONNX model in several precisions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from stages import precision
from stages.precision import Range
from stages.precision.types import Types

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with an Identity behind every float16 result, so that ONNX Runtime really rounds it.

    It has few float16 kernels for a CPU, computes in float32 between casts, and takes out a cast to float16 that is followed
    by one back, even when it is told not to optimise: sums above 65,504, which are infinite in TensorRT, then stay finite.
    """
    import onnx

    elements = Types.of(model, "auto").elements
    halves = {name for name, element in elements.items() if element == onnx.TensorProto.FLOAT16}
    _round(model.graph, halves)
    return model


def _round(graph: onnx.GraphProto, halves: Collection[str]) -> None:
    import onnx

    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _round(attribute.g, halves)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name in halves:
                node.output[index] = f"{name}__computed"
                nodes.append(onnx.helper.make_node("Identity", [node.output[index]], [name]))
    del graph.node[:]
    graph.node.extend(nodes)


def mixed(
    model: onnx.ModelProto,
    ops: Mapping[str, Sequence[str]],
    weights: MutableMapping[str, Array],
    *,
    ranges: Mapping[str, Range],
    fixed: Mapping[str, Range],
    quantised_only: bool = False,
) -> onnx.ModelProto:
    """A model whose TensorFlow ops compute in the precision that they are listed under.

    First the ops in int8 are quantised, then all that is not in fp32 computes in fp16: so does what can't be quantised of
    an op that is to be.

    Args:
        model: its weights loaded, or stand-ins as `onnx_files.load_model` makes them.
        ops: the region's TensorFlow ops by precision: int8, fp16, fp32.
        weights: the values of stand-ins by key; gains those of the new model.
        ranges, fixed: as for `precision.convert`.
        quantised_only: where something is in int8 all the rest is in fp32, which a CPU computes faster and as well.

    Raises:
        BuildError: the model can't be converted.
    """
    if ops.get("int8"):
        higher = [op for name, members in ops.items() if name != "int8" for op in members]
        model = precision.convert(model, "int8", weights, ranges=ranges, fixed=fixed, keep=higher, rest="fp32")
        if quantised_only:
            return model
    elif not ops.get("fp16"):
        return model
    return precision.convert(model, "fp16", weights, ranges=ranges, keep=ops.get("fp32", ()))
