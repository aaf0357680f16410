"""The stitched GraphDef: each region's ops replaced by one EngineCall, everything else as it was."""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import Engine, EngineSet, Region, load_weight
from stages.backends import get
from stages.graph import Graph
from stages.native import NativeSegment, native_segment, reads
from stages.onnx_files import as_one_file
from stages.profiles import onnx_inputs
from stages.regions import Cut, End, cut, in_host_memory

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.engine_op.interface import Interface


class PlanSource(str, Enum):
    """Where an EngineCall finds its plans: in files (assets of a SavedModel), or in the graph itself."""

    FILE = "file"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class StitchedDef:
    """A stitched graph.

    Attributes:
        outputs: the model's outputs in it, as tensor names, in order.
        handles: for each weight that a native segment reads, the Placeholder of its variable's handle.
        read_outside: weights that ops outside the regions read, as Placeholders under their own names.
        plans: file name to plan, and `plan_nodes`: file name to the string Placeholder for its path.
        beside: files with weights of plans; they belong into the plans' folder, under their own names.
    """

    graph_def: tf.compat.v1.GraphDef
    outputs: tuple[str, ...]
    handles: dict[str, str]
    read_outside: frozenset[str]
    plans: dict[str, Path]
    plan_nodes: dict[str, str]
    beside: tuple[Path, ...]

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.handles, *sorted(self.read_outside)]))


@dataclass(frozen=True, slots=True)
class _Graft:
    region: Region
    engines: tuple[Engine, ...]
    boundary: Cut
    native: NativeSegment
    node: str

    def file(self, engine: Engine) -> str:
        """The name of a plan's file among the model's assets."""
        return f"{self.region.name}.{engine.file.name}"


def stitch_graph(graph: Graph, engines: EngineSet, source: PlanSource, on_failure: str) -> StitchedDef:
    """Replace the ops of every region that has an engine by one EngineCall.

    An output of the model keeps the name of its op where it can (an Identity of that name reads the EngineCall), so
    that a GraphDef's users fetch what they always did.
    """
    grafts = list(_grafts(graph, engines, weights_inside=source is PlanSource.EMBEDDED))
    return _Stitcher(graph, grafts, source, on_failure).stitch()


def _grafts(graph: Graph, engines: EngineSet, *, weights_inside: bool) -> Iterator[_Graft]:
    taken = set(graph.number)
    for region in engines.partition.regions:
        own = tuple(engine for engine in engines.engines if engine.region == region.name)
        if not own:
            continue
        boundary = cut(graph, [graph.number[name] for name in region.ops])
        native = native_segment(graph, boundary, f"graftrt_{region.name}_native", weights_inside=weights_inside)
        yield _Graft(region, own, boundary, native, _free(f"graftrt/{region.name}", taken))


def _free(name: str, taken: set[str]) -> str:
    unused = next(n for n in itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1))) if n not in taken)
    taken.add(unused)
    return unused


class _Stitcher:
    """One stitched graph in the making."""

    def __init__(self, graph: Graph, grafts: Sequence[_Graft], source: PlanSource, on_failure: str) -> None:
        self.graph = graph
        self.grafts = grafts
        self.source = source
        self.on_failure = on_failure
        self.result = graph.library_for(())
        self.owner = {i: graft for graft in grafts for i in graft.boundary.ops}
        self.moved = {end: f"{g.node}:{k}" if k else g.node for g in grafts for k, end in enumerate(g.boundary.outputs)}
        """Tensors that an EngineCall computes now, and how a node refers to them."""
        self.handles = {node: f"graftrt/weights/{n}" for n, node in enumerate(reads([g.native for g in grafts]))}
        self.plans: dict[str, Path] = {}
        self.plan_nodes: dict[str, str] = {}

    def stitch(self) -> StitchedDef:
        for name in self.handles.values():
            self._placeholder(name, "resource")
        for graft in self.grafts:
            self._add_plans(graft)
            self._add_engine_call(graft)
        kept = self._kept()
        for i in kept:
            self._copy(i)
        self._add_functions(kept)
        outputs = self._outputs()
        outside = {self.graph.nodes[i].name for i in kept} & set(self.graph.weights)
        read_outside = frozenset() if self.source is PlanSource.EMBEDDED else frozenset(outside)
        beside = {file.name: file for graft in self.grafts for engine in graft.engines for file in engine.beside}
        files = tuple(beside.values())
        return StitchedDef(self.result, outputs, self.handles, read_outside, self.plans, self.plan_nodes, files)

    def _add_functions(self, kept: Sequence[int]) -> None:
        called = self.graph.library_for(self.graph.nodes[i].name for i in kept).library.function
        functions = {function.signature.name: function for function in called}
        for graft in self.grafts:
            functions.update({function.signature.name: function for function in graft.native.functions})
        for function in functions.values():
            self.result.library.function.add().CopyFrom(function)

    def _add_plans(self, graft: _Graft) -> None:
        for engine in graft.engines:
            file = graft.file(engine)
            self.plans[file], self.plan_nodes[file] = engine.file, f"graftrt/plans/{file}"
            if self.source is PlanSource.EMBEDDED:
                self._constant(self.plan_nodes[file], _embedded(engine), "string")
            else:
                self._placeholder(self.plan_nodes[file], "string")

    def _add_engine_call(self, graft: _Graft) -> None:
        import tensorflow as tf

        from stages.engine_op.interface import FORMAT_VERSION

        region, node = graft.region, self.result.node.add(name=graft.node, op="EngineCall")
        handles = [self.handles[weight] for weight in graft.native.weights]
        node.input.extend(self._reference(end) for end in graft.boundary.inputs)
        node.input.extend(handles)
        node.input.extend(self.plan_nodes[graft.file(engine)] for engine in graft.engines)
        node.input.extend(sorted({f"^{self._control(i)}" for i in graft.boundary.controls_in}))
        device = [tensor for tensor in region.inputs if not in_host_memory(tensor)]
        host = region.inputs[len(device) :]
        for attribute, tensors in (("Tin", device), ("Thost", host), ("Tout", region.outputs)):
            node.attr[attribute].list.SetInParent()
            node.attr[attribute].list.type.extend(tf.as_dtype(tensor.dtype).as_datatype_enum for tensor in tensors)
        node.attr["Tcap"].list.type.extend([tf.resource.as_datatype_enum] * len(handles))
        node.attr["N"].i = len(graft.engines)
        node.attr["output_shapes"].list.shape.extend(tf.TensorShape(t.shape).as_proto() for t in region.outputs)
        node.attr["native_segment"].func.name = graft.native.name
        node.attr["interface"].s = _interface(graft, self.source, self.on_failure).to_json().encode()
        node.attr["format_version"].i = FORMAT_VERSION

    def _kept(self) -> list[int]:
        """The nodes that the stitched graph still needs, besides the EngineCalls."""
        graph = self.graph
        pending = deque(end[0] for end in graph.fetched)
        pending.extend(graph.number[name] for name in graph.frozen.side_effects)
        pending.extend(graph.number[tensor.name.split(":")[0]] for tensor in graph.frozen.inputs)
        seen: set[int] = set()
        called: set[str] = set()
        while pending:
            i = pending.popleft()
            graft = self.owner.get(i)
            if graft is None and i not in seen:
                seen.add(i)
                pending.extend(graph.nodes[i].predecessors)
            elif graft is not None and graft.node not in called:
                called.add(graft.node)
                pending.extend(source for source, _ in graft.boundary.inputs)
                pending.extend(graft.boundary.controls_in)
        return sorted(seen)

    def _copy(self, i: int) -> None:
        node = self.graph.nodes[i]
        if node.name in self.graph.weights and self.source is PlanSource.EMBEDDED:
            weight = self.graph.weights[node.name]
            self._constant(node.name, load_weight(self.graph.frozen, weight), weight.dtype)
            return
        copy = self.result.node.add()
        copy.CopyFrom(self.graph.node_defs[node.name])
        del copy.input[:]
        copy.input.extend(self._reference(end) for end in node.inputs)
        copy.input.extend(dict.fromkeys(f"^{self._control(j)}" for j in node.controls))

    def _outputs(self) -> tuple[str, ...]:
        """Where the model's outputs are now; ops inside regions get a stand-in under their own name."""
        import tensorflow as tf

        fetched: dict[int, list[int]] = {}
        for i, k in sorted(self.graph.fetched):
            fetched.setdefault(i, []).append(k)
        for i, numbers in fetched.items():
            if i not in self.owner or numbers != list(range(len(numbers))):
                continue
            stand_in = self.result.node.add(name=self.graph.nodes[i].name, op="IdentityN")
            stand_in.input.extend(self.moved.pop((i, k)) for k in numbers)
            stand_in.attr["T"].list.type.extend(
                tf.as_dtype(self.graph.tensor(i, k).dtype).as_datatype_enum for k in numbers
            )
        names = (tensor.name.rsplit(":", 1) for tensor in self.graph.frozen.outputs)
        references = [self._reference((self.graph.number[name], int(k))) for name, k in names]
        return tuple(name if ":" in name else f"{name}:0" for name in references)

    def _reference(self, end: End) -> str:
        if end in self.moved:
            return self.moved[end]
        name = self.graph.nodes[end[0]].name
        return f"{name}:{end[1]}" if end[1] else name

    def _control(self, i: int) -> str:
        return self.owner[i].node if i in self.owner else self.graph.nodes[i].name

    def _placeholder(self, name: str, dtype: str) -> None:
        import tensorflow as tf

        node = self.result.node.add(name=name, op="Placeholder")
        node.attr["dtype"].type = tf.as_dtype(dtype).as_datatype_enum
        node.attr["shape"].shape.SetInParent()

    def _constant(self, name: str, value: object, dtype: str) -> None:
        import tensorflow as tf

        node = self.result.node.add(name=name, op="Const")
        node.attr["dtype"].type = tf.as_dtype(dtype).as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, dtype))


def _embedded(engine: Engine) -> bytes:
    """A plan as one string of bytes, its weights inside."""
    return as_one_file(engine.file) if engine.beside else engine.file.read_bytes()


def _interface(graft: _Graft, source: PlanSource, on_failure: str) -> Interface:
    # Importing the package loads the op into TensorFlow, which only stitching itself needs.
    from stages.engine_op.interface import Interface, Plan, Port

    region, embedded = graft.region, source is PlanSource.EMBEDDED
    bound = {name for name, _ in onnx_inputs(region)}
    names = [f"input_{i}" for i in range(len(region.inputs))]
    profiles = tuple(
        tuple((r.input, r.minimum, r.optimum, r.maximum) for r in profile if r.input in bound)
        for profile in region.profiles
    )
    return Interface(
        region=region.name,
        inputs=tuple(
            Port(
                name if name in bound else None,
                tensor.dtype,
                tensor.shape,
                "host" if in_host_memory(tensor) else "device",
            )
            for name, tensor in zip(names, region.inputs, strict=True)
        ),
        outputs=tuple(Port(f"output_{i}", tensor.dtype, tensor.shape) for i, tensor in enumerate(region.outputs)),
        plans=tuple(
            Plan(
                engine.fingerprint.backend,
                get(engine.fingerprint.backend).device,
                engine.fingerprint.version,
                engine.fingerprint.precision,
                hashlib.sha256(_embedded(engine)).hexdigest() if embedded and engine.beside else engine.sha256,
                engine.bytes,
                engine.fingerprint.digest,
                engine.fingerprint.capabilities,
                # ONNX Runtime takes any size that the model takes.
                profiles if get(engine.fingerprint.backend).device == "gpu" else (),
                () if embedded else tuple(file.stem for file in engine.beside),
            )
            for engine in graft.engines
        ),
        storage=source.value,
        on_failure=on_failure,
    )
