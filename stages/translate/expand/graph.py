"""Replaces ops of a TensorFlow graph by simpler TensorFlow ops, before tf2onnx sees it.

A rule is a function that computes an op with other TensorFlow ops. It is traced into a graph of its own, and that is
put in the op's place; an Identity under the op's own name ends it, so that nothing around it changes. Complex tensors
become two real ones: they exist in neither ONNX nor TensorRT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.translate.expand.call import LEAVE, Call, Pair, Rule, Untranslatable, Value
from stages.translate.weights import LightGraph

if TYPE_CHECKING:
    import tensorflow as tf

_PART = "expanded"
_MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Expanded:
    """`light` is the graph without the ops that were expanded; `failed` says of others, by name, why they were not."""

    light: LightGraph
    failed: dict[str, str]


def expand(light: LightGraph, rules: Mapping[str, Rule], complex_rules: Mapping[str, Rule]) -> Expanded:
    """Expand every op that has a rule, and every op with a complex input or output (`complex_rules`), and what they
    became, until nothing changes.

    Where an op fails the graph is of no use. Functions are not looked into.
    """
    for _ in range(_MAX_ROUNDS):
        if not any(node.op in rules or _mentions_complex(node) for node in light.graph_def.node):
            return Expanded(light, {})
        expanded = _expand_once(light, rules, complex_rules)
        if expanded.failed or expanded.light is light:
            return expanded
        light = expanded.light
    raise AssertionError("rules that expand into one another")


def _expand_once(light: LightGraph, rules: Mapping[str, Rule], complex_rules: Mapping[str, Rule]) -> Expanded:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(light.graph_def, name="")
    splicer = _Splicer(light)
    for op in graph.get_operations():
        complex_op = any(_is_complex(tensor) for tensor in (*op.inputs, *op.outputs))
        rule = (complex_rules if complex_op else rules).get(op.type)
        if complex_op and rule is None:
            splicer.fail(op, f"{op.type} of complex numbers has no translation")
        elif rule is not None:
            splicer.replace(op, rule)
    return splicer.result()


def _is_complex(tensor: tf.Tensor) -> bool:
    return bool(tensor.dtype.is_complex)


def _mentions_complex(node: tf.compat.v1.NodeDef) -> bool:
    import tensorflow as tf

    types = {tf.complex64.as_datatype_enum, tf.complex128.as_datatype_enum}
    return any(value.type in types or types & set(value.list.type) for value in node.attr.values())


class _Splicer:
    """A copy of a GraphDef in which ops are replaced one after the other, producers first."""

    def __init__(self, light: LightGraph) -> None:
        self._light = light
        self._taken = [node.name for node in light.graph_def.node if f"/{_PART}" in node.name]
        self._old = {node.name: node for node in light.graph_def.node}
        self._new: dict[str, tf.compat.v1.GraphDef] = {}
        self._pairs: dict[str, tuple[str, str]] = {}
        self._failed: dict[str, str] = {}

    def fail(self, op: tf.Operation, why: str) -> None:
        self._failed[op.name] = why

    def replace(self, op: tf.Operation, rule: Rule) -> None:
        """Put a rule's ops in the place of an op, or note why that can't be."""
        import tensorflow as tf

        missing = [t for t in op.inputs if _is_complex(t) and t.name not in self._pairs]
        if missing:
            self.fail(op, f"reads {missing[0].name}, which is complex and was not translated")
            return
        sources: dict[str, str] = {}
        with tf.Graph().as_default() as part:
            inputs = tuple(self._stand_in(tensor, f"graftrt_in_{i}", sources) for i, tensor in enumerate(op.inputs))
            try:
                result = rule(Call(op, inputs, self._light.weights))
            except Untranslatable as error:
                self.fail(op, str(error))
                return
            if result is LEAVE:
                return
            ends = list(result) if isinstance(result, Sequence) else [result]
            assert len(ends) == len(op.outputs), op.type
            kept = self._close(op, ends)
        self._new[op.name] = self._renamed(op, part, sources, kept)

    def result(self) -> Expanded:
        import tensorflow as tf

        if not self._new:
            return Expanded(self._light, self._failed)
        graph_def = tf.compat.v1.GraphDef()
        graph_def.versions.CopyFrom(self._light.graph_def.versions)
        graph_def.library.CopyFrom(self._light.graph_def.library)
        origins = dict(self._light.origins)
        gone = {name for name in self._new if name not in {n.name for n in self._new[name].node}}
        for node in self._light.graph_def.node:
            part = self._new.get(node.name)
            if part is None:
                graph_def.node.add().CopyFrom(node)
                continue
            graph_def.node.extend(part.node)
            origin = self._light.origins.get(node.name) or frozenset((node.name,))
            origins.update(dict.fromkeys((inner.name for inner in part.node), origin))
        for node in graph_def.node:  # a control input orders effects, and what is expanded has none
            wanted = [name for name in node.input if not (name[:1] == "^" and name[1:] in gone)]
            if len(wanted) < len(node.input):
                del node.input[:]
                node.input.extend(wanted)
        weights = {name: value for name, value in self._light.weights.items() if name not in self._new}
        return Expanded(LightGraph(graph_def, weights, origins), self._failed)

    def _stand_in(self, tensor: tf.Tensor, name: str, sources: dict[str, str]) -> Value:
        """Placeholders for an input; `sources` gets the tensor that each stands for."""
        import tensorflow as tf

        if not _is_complex(tensor):
            sources[name] = tensor.name.removesuffix(":0")
            return tf.compat.v1.placeholder(tensor.dtype, tensor.shape, name)
        sources[f"{name}_re"], sources[f"{name}_im"] = self._pairs[tensor.name]
        real = tensor.dtype.real_dtype
        parts = (tf.compat.v1.placeholder(real, tensor.shape, f"{name}_{part}") for part in ("re", "im"))
        return Pair(*parts)

    def _close(self, op: tf.Operation, ends: Sequence[Value]) -> str:
        """End an expansion: complex results are noted, the real ones get the op's own name; returns the name that the
        op which has it bears in the graph of the expansion, or nothing."""
        import tensorflow as tf

        prefix = self._prefix(op.name)
        real: list[tf.Tensor] = []
        for tensor, end in zip(op.outputs, ends, strict=True):
            if isinstance(end, Pair):
                last = [tf.identity(tf.ensure_shape(part, tensor.shape)) for part in (end.re, end.im)]
                self._pairs[tensor.name] = (f"{prefix}{last[0].op.name}", f"{prefix}{last[1].op.name}")
            else:
                assert end.dtype == tensor.dtype, op.type
                real.append(end)
        if len(real) < len(op.outputs):
            assert not real, f"{op.type}: an op with real and complex results"
            return ""
        if len(real) == 1:
            return str(tf.identity(real[0], "graftrt_end").op.name)
        return str(tf.identity_n(real, "graftrt_end")[0].op.name)

    def _prefix(self, name: str) -> str:
        prefix = f"{name}/{_PART}"
        while any(taken.startswith(f"{prefix}/") for taken in self._taken):
            prefix += "_"
        return f"{prefix}/"

    def _renamed(
        self, op: tf.Operation, part: tf.Graph, sources: Mapping[str, str], kept: str
    ) -> tf.compat.v1.GraphDef:
        """The expansion under names of the whole graph, less its placeholders."""
        prefix, graph_def = self._prefix(op.name), part.as_graph_def()
        own = {node.name for node in graph_def.node}

        def outer(reference: str) -> str:
            name, colon, index = reference.removeprefix("^").partition(":")
            assert name in own
            if name in sources:
                return sources[name]
            return (op.name if name == kept else prefix + name) + colon + index

        inside = [node for node in graph_def.node if node.name not in sources]
        for node in inside:
            data = [outer(name) for name in node.input if name[:1] != "^"]
            del node.input[:]
            node.input.extend(data)
            if node.name == kept and "_output_shapes" in self._old[op.name].attr:
                node.attr["_output_shapes"].CopyFrom(self._old[op.name].attr["_output_shapes"])
            node.name = op.name if node.name == kept else prefix + node.name
        del graph_def.node[:]
        graph_def.node.extend(inside)
        return graph_def
