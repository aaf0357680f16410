"""Stage 5: engine-call ops in the original graph, saved as a model like the one that came in."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages import saved_models, signature_defs, storage
from stages.artifacts import EngineSet, FrozenGraph, StitchedGraph, load_weight
from stages.errors import StitchError
from stages.grafts import PlanSource, Policy
from stages.graph import Graph
from stages.importing import import_graph, trace
from stages.mapped import mapped_constant
from stages.model import first_line
from stages.stitching import StitchedDef, stitch_graph

if TYPE_CHECKING:
    import tensorflow as tf

log = logging.getLogger(__name__)

EMBEDDED_LIMIT_BYTES = 1 << 30
"""A GraphDef with more bytes of plans and weights inside is refused: it would cost several times that in memory."""


def stitch(
    engines: EngineSet, out: Path, *, on_failure: str = "native", build_at_runtime: bool = False
) -> StitchedGraph:
    """Put one EngineCall per region into the graph and save it in `out/saved_model`.

    It has the signature's names, dtypes, shapes and tags. A model that came as a frozen `.pb` is also written as
    `out/model.pb`, its engines embedded.

    Weights above 1 MiB stay variables, plans are assets. Other signatures of a SavedModel stay as they are.

    Args:
        on_failure: what the op does when no engine can run: `native` (TensorFlow's ops run, counted and logged) or
            `fail` (the call raises).
        build_at_runtime: an engine for sizes that no plan takes, or for a version of the library that can't load the
            plans, is built in the background while the model serves; needs ONNX Runtime's engines besides TensorRT's.

    Raises:
        ArtifactError: `out` exists or can't be written.
        StitchError: `on_failure` is neither; there is no ONNX Runtime engine to build from at run time;
            TensorFlow can't write the SavedModel.
        ModelError: the original model is needed for its tables or signatures and is gone.
        EngineOpError: the op can't be compiled or loaded.
    """
    if on_failure not in ("native", "fail"):
        raise StitchError(f"on_failure {on_failure!r}", "choose native or fail")
    if build_at_runtime:
        _need_models(engines)
    policy = Policy(on_failure, build_at_runtime)
    from stages import engine_op

    engine_op.load()
    graph = Graph(engines.partition.frozen)
    with storage.write_folder(out) as folder:
        _save_model(graph, engines, folder, policy)
        if graph.frozen.source.kind == "graph_def":
            _save_graph_def(graph, engines, folder / "model.pb", policy)
        storage.save(StitchedGraph(folder, engines, graph.frozen.source.signature), folder)
    return storage.load(StitchedGraph, out)


def _need_models(engines: EngineSet) -> None:
    """Raise where no region has an ONNX model to build another engine from."""
    if engines.engines and not any(engine.fingerprint.backend == "onnxruntime" for engine in engines.engines):
        raise StitchError(
            "there are no ONNX Runtime engines, from which others could be built at run time",
            "build with --backend tensorrt_rtx,onnxruntime",
        )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the stitched function refers to; a tf.Module that is saved must own them."""

    variables: Mapping[str, tf.Tensor]
    """Handles, by the node of the weight."""
    plans: Mapping[str, tf.saved_model.Asset]
    captured: Mapping[str, tf.Tensor]


def _save_model(graph: Graph, engines: EngineSet, folder: Path, policy: Policy) -> None:
    import tensorflow as tf

    frozen = graph.frozen
    staged = folder / "plans"
    staged.mkdir()
    source = _reopened(graph)
    stitched = stitch_graph(graph, engines, PlanSource.FILE, policy)
    module = tf.Module()
    # What the source's other signatures read anyway must not be there twice.
    shared = {} if source is None else source.variables
    module.weights = {
        node: tf.Variable(mapped_constant(load_weight(frozen, graph.weights[node])), trainable=False)
        for node in stitched.weights
        if node not in shared
    }
    module.plans = {
        name: tf.saved_model.Asset(str(_staged(path, staged / name))) for name, path in stitched.plans.items()
    }
    # No op reads these: plans name them, and they must lie beside the plans.
    module.beside = [tf.saved_model.Asset(str(_staged(path, staged / path.name))) for path in stitched.beside]
    signatures: dict[str, tf.types.experimental.ConcreteFunction] = {}
    captured: dict[str, tf.Tensor] = {}
    if source is not None:
        module.source = source.owner
        captured = dict(source.captured)
        signatures.update(source.signatures)
    handles = {node: variable.handle for node, variable in module.weights.items()}
    parts = _Parts({node: handles.get(node, shared.get(node)) for node in stitched.weights}, module.plans, captured)
    signatures[frozen.source.signature] = _function(graph, stitched, parts)
    target = folder / "saved_model"
    # Gradients can't be saved for functions that came from a GraphDef, and an engine has none anyway.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    try:
        tf.saved_model.save(module, str(target), signatures=signatures, options=options)
    except tf.errors.OpError as error:
        raise StitchError(f"{target}: can't be written: {first_line(error)}", "free some disk space") from error
    original = None if frozen.source.path is None else frozen.folder / frozen.source.path
    names = {frozen.source.signature: frozen.input_names}
    signature_defs.restore_details(target, frozen.source.tags, original, names)
    shutil.rmtree(staged)


def _function(graph: Graph, stitched: StitchedDef, parts: _Parts) -> tf.types.experimental.ConcreteFunction:
    import tensorflow as tf

    frozen = graph.frozen
    arguments = signature_defs.argument_names(frozen.input_names)
    inputs = {arguments[name]: tensor for name, tensor in zip(frozen.input_names, frozen.inputs, strict=True)}

    def serve(**keywords: tf.Tensor) -> dict[str, tf.Tensor]:
        tensors = {tensor.name: keywords[name] for name, tensor in inputs.items()}
        for node, handle in parts.variables.items():
            if node in stitched.handles:
                tensors[f"{stitched.handles[node]}:0"] = handle
            if node in stitched.read_outside:
                dtype = tf.as_dtype(graph.weights[node].dtype)
                tensors[f"{node}:0"] = tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype)
        tensors |= {f"{stitched.plan_nodes[name]}:0": asset.asset_path for name, asset in parts.plans.items()}
        tensors |= {f"{node}:0": tensor for node, tensor in parts.captured.items()}
        results = import_graph(stitched.graph_def, tensors, stitched.outputs)
        return dict(zip(frozen.output_names, results, strict=True))

    specs = {name: tf.TensorSpec(tensor.shape, tensor.dtype, name=name) for name, tensor in inputs.items()}
    return trace(serve, specs, stitched.graph_def)


def _save_graph_def(graph: Graph, engines: EngineSet, path: Path, policy: Policy) -> None:
    plans = sum(engine.bytes for engine in engines.engines)
    weights = sum((graph.frozen.folder / weight.file).stat().st_size for weight in graph.frozen.weights)
    if plans + weights > EMBEDDED_LIMIT_BYTES:
        size = f"{(plans + weights) / 2**30:.1f} GiB"
        log.warning("stitch: no model.pb: it would hold %s of plans and weights, 1 GiB at most; use saved_model/", size)
        return
    stitched = stitch_graph(graph, engines, PlanSource.EMBEDDED, policy)
    _keep_output_names(stitched, graph.frozen)
    path.write_bytes(stitched.graph_def.SerializeToString(deterministic=True))


def _keep_output_names(stitched: StitchedDef, frozen: FrozenGraph) -> None:
    """Give outputs that are elsewhere now the names that the GraphDef's users fetch: a function that was called is gone,
    its results are those of its body's nodes."""
    import tensorflow as tf

    taken = {node.name for node in stitched.graph_def.node}
    moved: dict[str, list[tuple[str, str]]] = {}
    for label, now, tensor in zip(frozen.output_names, stitched.outputs, frozen.outputs, strict=True):
        op, _, index = label.partition(":")
        results = moved.setdefault(op, [])
        if now == f"{op}:{index or 0}":
            continue
        if op in taken or int(index or 0) != len(results):
            log.warning("stitch: in model.pb the output %s is %s", label, now)
            continue
        results.append((now, tensor.dtype))
    for op, results in moved.items():
        if results:
            stand_in = stitched.graph_def.node.add(name=op, op="IdentityN")
            stand_in.input.extend(now for now, _ in results)
            stand_in.attr["T"].list.type.extend(tf.as_dtype(dtype).as_datatype_enum for _, dtype in results)


def _reopened(graph: Graph) -> saved_models.Reopened | None:
    """The original SavedModel, where the stitched one needs its tables, its variables or its other signatures."""
    frozen = graph.frozen
    if frozen.source.kind != "saved_model":
        return None
    reopened = saved_models.reopen(frozen)
    return reopened if frozen.captures or set(reopened.signatures) - {frozen.source.signature} else None


def _staged(plan: Path, target: Path) -> Path:
    """Plans become assets under their own names; SavedModel takes the name from the file."""
    storage.link_or_copy(plan, target)
    return target
