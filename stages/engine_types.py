"""Does an engine compute in the types that its ONNX model states?

TensorRT's networks are strongly typed: the parser must give every layer the types of the model, and the builder must
keep them. Both are looked at, not taken on trust: the parsed network on any machine, the built engine where it can be
opened, which needs its GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.artifacts import EngineTypes

if TYPE_CHECKING:
    import onnx

NOT_TOLD = "not told"
NOTHING = "nothing in it multiplies"
MULTIPLY = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN"})
_MOVES = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten"})
"""Between a DequantizeLinear and what multiplies they change nothing about the type."""
_NAMED = 3


@dataclass(frozen=True, slots=True)
class TypedLayer:
    """A layer of a network or engine: the ONNX nodes that it is made of, and the types that it reads, computes or writes in;
    none where the library does not say."""

    name: str
    onnx: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


def asked_types(model: onnx.ModelProto) -> dict[str, str]:
    """The type in which each ONNX node that multiplies does so, by node name; weights may be missing from the model.

    A node multiplies in int8 or float8 if all that it multiplies comes from DequantizeLinear.

    Raises:
        BuildError: ONNX's type inference rejects the model.
    """
    from stages.precision.types import Types

    elements = Types.of(model, "types").elements
    nodes = list(_all_nodes(model.graph))
    makers = {name: node for node in nodes for name in node.output}
    found: dict[str, str] = {}
    for node in nodes:
        if node.op_type in MULTIPLY:
            multiplied = [name for name in node.input[:2] if name]
            types = {_type_name(_source(name, elements, makers)) for name in multiplied}
            found[node.name] = types.pop() if len(types) == 1 else _type_name(elements.get(multiplied[0], 0))
    return found


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Names of tensors are unique in a model, bodies of loops and branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


def _source(name: str, elements: Mapping[str, int], makers: Mapping[str, onnx.NodeProto]) -> int:
    """The element type of a tensor, or of what was dequantised into it."""
    node = makers.get(name)
    while node is not None and node.op_type in _MOVES:
        node = makers.get(node.input[0])
    return elements.get(node.input[0] if node is not None and node.op_type == "DequantizeLinear" else name, 0)


def _type_name(element: int) -> str:
    import onnx

    return type_name(onnx.TensorProto.DataType.Name(element))


def type_name(text: str) -> str:
    """One of the types of `EngineTypes`, from ONNX's or TensorRT's name of it; other types in small letters."""
    known = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8", "FLOAT8E4M3FN": "float8"}
    return known.get(text.upper(), text.lower())


def compare_network(asked: Mapping[str, str], network: Sequence[TypedLayer]) -> EngineTypes:
    """What was asked for against the network that TensorRT parsed.

    Args:
        asked: as from `asked_types`.
        network: its layers that multiply.
    """
    by_type = {kind: tuple(n for n, k in asked.items() if k == kind) for kind in dict.fromkeys(asked.values())}
    parsed = Counter(kind for layer in network for kind in layer.types)
    wrong = _mismatches(asked, network)
    types = EngineTypes(by_type, dict(parsed), {}, None, "the engine was not opened" if asked else NOTHING)
    if wrong:
        types = replace(types, confirmed=False, why_not=f"TensorRT's parser changed types: {_told(wrong)}")
    return types


def confirm(types: EngineTypes, layers: Sequence[TypedLayer], why_not: str = "") -> EngineTypes:
    """The same, with what the engine inspector says of the built engine.

    Args:
        layers: all layers of the engine; none with a reason where it can't be inspected.
        why_not: that reason.
    """
    if not types.asked or (types.confirmed is False and not types.found):
        return types  # the parser's fault, which no engine can mend
    if not layers:
        return replace(types, found={}, confirmed=None, why_not=why_not or "the engine names no layers")
    asked = {node: kind for kind, nodes in types.asked.items() for node in nodes}
    holding = [layer for layer in layers if any(node in asked for node in layer.onnx)]
    found: Counter[str] = Counter()
    for layer in holding:
        kinds = {asked[node] for node in layer.onnx if node in asked}
        found.update(kinds & set(layer.types) or layer.types[:1] or (NOT_TOLD,))
    result = replace(types, found=dict(found))
    wrong = _mismatches(asked, [layer for layer in holding if layer.types])
    if wrong:
        return replace(result, confirmed=False, why_not=f"the engine has other types: {_told(wrong)}")
    if not set(types.asked) - set(found):
        return replace(result, confirmed=True, why_not="")
    told = (
        f"the types of {found[NOT_TOLD]} of {len(holding)} layers that multiply" if holding else "which layers multiply"
    )
    return replace(result, confirmed=None, why_not=f"the engine inspector does not tell {told}")


def _mismatches(asked: Mapping[str, str], layers: Iterable[TypedLayer]) -> list[str]:
    return [
        f"{node} is {', '.join(layer.types)} instead of {asked[node]}"
        for layer in layers
        for node in layer.onnx
        if node in asked and asked[node] not in layer.types
    ]


def _told(wrong: Sequence[str]) -> str:
    more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
    return "; ".join(wrong[:_NAMED]) + more
