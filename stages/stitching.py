"""The stitched GraphDef: each region's ops replaced by one EngineCall, everything else as it was."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import EngineSet, load_weight
from stages.bodies import Body, bodies
from stages.callers import NewBody, put_back
from stages.grafts import Graft, PlanSource, Policy, embedded_plan, grafts_of, interface_of
from stages.graph import Graph
from stages.library import reachable_functions
from stages.native import reads
from stages.regions import End, in_host_memory

if TYPE_CHECKING:
    import tensorflow as tf


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


def stitch_graph(graph: Graph, engines: EngineSet, source: PlanSource, policy: Policy) -> StitchedDef:
    """Replace the ops of every region that has an engine by one EngineCall, in the bodies of branches and loops too.

    An output of the model keeps the name of its op where it can (an Identity of that name reads the EngineCall), so
    that a GraphDef's users fetch what they always did.
    """
    grafts = list(grafts_of(graph, engines, weights_inside=source is PlanSource.EMBEDDED))
    deeper = {region.scope for region in engines.partition.regions if region.scope}
    inner: dict[int, list[_Inner]] = {}
    if any(scope.startswith(f"{graph.scope}/" if graph.scope else "") for scope in deeper):
        taken = [op for graft in grafts for op in graft.region.ops]
        for body in bodies(graph, taken, constants=False):
            if any(f"{scope}/".startswith(f"{body.graph.scope}/") for scope in deeper):
                stitched = stitch_graph(body.graph, engines, source, policy)
                if stitched.plans:
                    inner.setdefault(body.call, []).append(_Inner(body, stitched))
    return _Stitcher(graph, grafts, inner, source, policy).stitch()


@dataclass(frozen=True, slots=True)
class _Inner:
    """A body of a branch or loop with engines in it."""

    body: Body
    stitched: StitchedDef


class _Stitcher:
    """One stitched graph in the making. `inner` are the bodies with engines by the number of the node that runs them."""

    def __init__(
        self,
        graph: Graph,
        grafts: Sequence[Graft],
        inner: Mapping[int, Sequence[_Inner]],
        source: PlanSource,
        policy: Policy,
    ) -> None:
        self.graph = graph
        self.grafts = grafts
        self.inner = inner
        self.functions = dict(graph.library)
        self.source = source
        self.policy = policy
        self.result = graph.library_for(())
        self.owner = {i: graft for graft in grafts for i in graft.boundary.ops}
        self.moved = {end: f"{g.node}:{k}" if k else g.node for g in grafts for k, end in enumerate(g.boundary.outputs)}
        """Tensors that an EngineCall computes now, and how a node refers to them."""
        self.handles = {node: f"graftrt/weights/{n}" for n, node in enumerate(reads([g.native for g in grafts]))}
        self.plans: dict[str, Path] = {}
        self.plan_nodes: dict[str, str] = {}
        self.beside = {file.name: file for graft in grafts for engine in graft.engines for file in engine.beside}
        for entry in (entry for entries in inner.values() for entry in entries):
            self.beside |= {file.name: file for file in entry.stitched.beside}

    def stitch(self) -> StitchedDef:
        for name in self.handles.values():
            self._placeholder(name, "resource")
        for graft in self.grafts:
            self._add_plans({graft.file(engine): engine.file for engine in graft.engines})
            self._add_engine_call(graft)
            self.functions |= {function.signature.name: function for function in graft.native.functions}
        kept = self._kept()
        for i in kept:
            self._copy(i)
        outputs = self._outputs()
        self.result.library.function.extend(reachable_functions(self.result.node, self.functions))
        outside = {self.graph.nodes[i].name for i in kept} & set(self.graph.weights)
        read_outside = frozenset() if self.source is PlanSource.EMBEDDED else frozenset(outside)
        beside = tuple(self.beside.values())
        return StitchedDef(self.result, outputs, self.handles, read_outside, self.plans, self.plan_nodes, beside)

    def _add_plans(self, plans: Mapping[str, Path]) -> None:
        for file, path in plans.items():
            self.plans[file], self.plan_nodes[file] = path, f"graftrt/plans/{file}"
            if self.source is PlanSource.EMBEDDED and not self.graph.scope:
                self._constant(self.plan_nodes[file], embedded_plan(path), "string")
            else:
                self._placeholder(self.plan_nodes[file], "string")

    def _add_engine_call(self, graft: Graft) -> None:
        import tensorflow as tf

        from stages.engine_op.interface import FORMAT_VERSION

        region, node = graft.region, self.result.node.add(name=graft.node, op="EngineCall")
        handles = [self.handles[weight] for weight in graft.native.weights]
        node.input.extend(self._reference(end) for end in graft.boundary.inputs)
        node.input.extend(handles)
        node.input.extend(self.plan_nodes[graft.file(engine)] for engine in graft.engines)
        node.input.extend(sorted({f"^{self._control(i)}" for i in graft.boundary.controls_in}))
        device = [tensor for tensor in graft.inputs if not in_host_memory(tensor)]
        host = graft.inputs[len(device) :]
        for attribute, ends in (("Tin", device), ("Thost", host), ("Tout", region.outputs)):
            node.attr[attribute].list.SetInParent()
            node.attr[attribute].list.type.extend(tf.as_dtype(tensor.dtype).as_datatype_enum for tensor in ends)
        node.attr["Tcap"].list.type.extend([tf.resource.as_datatype_enum] * len(handles))
        node.attr["N"].i = len(graft.engines)
        node.attr["output_shapes"].list.shape.extend(tf.TensorShape(t.shape).as_proto() for t in region.outputs)
        node.attr["native_segment"].func.name = graft.native.name
        node.attr["interface"].s = interface_of(graft, self.source, self.policy).to_json().encode()
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
        if i in self.inner:
            self._put_back(copy, self.inner[i])
        copy.input.extend(dict.fromkeys(f"^{self._control(j)}" for j in node.controls))

    def _put_back(self, node: tf.compat.v1.NodeDef, inner: Sequence[_Inner]) -> None:
        """Let a branch or loop run its stitched bodies."""
        plans: dict[str, Path] = {}
        for entry in inner:
            plans |= entry.stitched.plans
        self._add_plans(plans)
        new = [
            NewBody(entry.body, entry.stitched.graph_def, entry.stitched.outputs, entry.stitched.plan_nodes)
            for entry in inner
        ]
        added = put_back(node, new, {file: self.plan_nodes[file] for file in plans}, self.graph.library)
        self.functions |= {function.signature.name: function for function in added}

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
