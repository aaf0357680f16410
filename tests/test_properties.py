"""Properties of every conversion, on random graphs of random ops."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures.random_graphs import random_graph, random_inputs
from pipeline import Config, Report, convert
from stages import engine_op, storage
from stages.artifacts import Engine, EngineSet, Fingerprint, Partition, Reason, Region
from stages.candidates import Candidates
from stages.freeze import freeze
from stages.grafts import PlanSource, Policy
from stages.graph import Graph
from stages.stitching import StitchedDef, stitch_graph
from tests.conftest import Converted, relative_error
from tests.test_cluster import acyclic_quotient

FP32 = 1e-5


def steps(seed: int) -> int:
    return 4 + seed % 57


def check_structure(seed: int) -> None:
    """Whatever is refused, regions are convex together, every op is in one or left, and stitching keeps the order."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_graph(seed, steps(seed)).save(folder / "model")
        graph = Graph(freeze(str(model), folder / "freeze"))
        candidates = Candidates(graph, folder / "regions", keep_in_tf=(), min_region=1 + seed % 3)
        rng = np.random.default_rng(seed)
        for share in (0.0, 0.1, 0.3):
            inside = sorted(graph.number[op] for region in candidates.settle() for op in region.ops)
            candidates.evict({i: (Reason.REFUSED, "by chance") for i in inside if rng.random() < share})
            regions = candidates.settle()
            check_regions(candidates, regions)
            check_stitched(graph, regions, stitched_around(candidates, regions))


def check_regions(candidates: Candidates, regions: list[Region]) -> None:
    graph = candidates.graph
    members = [[graph.number[name] for name in region.ops] for region in regions]
    inside = [i for ops in members for i in ops]
    assert len(inside) == len(set(inside))
    left = {graph.number[op.node]: op for op in candidates.left(regions)}
    assert set(left) | set(inside) == set(graph.computing())
    assert not set(left) & set(inside)
    assert all(op.reason.value for op in left.values())
    predecessors = [sorted(p for p in node.predecessors if not graph.nodes[p].free) for node in graph.nodes]
    assert acyclic_quotient(predecessors, members)


def stitched_around(candidates: Candidates, regions: list[Region]) -> StitchedDef:
    """The graph with every candidate's own ONNX model as its engine, which is what an ONNX Runtime plan is."""
    frozen = candidates.graph.frozen
    engines = tuple(
        Engine(
            region.name,
            region.model,
            region.digest,
            region.model.stat().st_size,
            0.0,
            Fingerprint("onnxruntime", "", "fp32", region.digest),
        )
        for region in regions
    )
    left = candidates.left(regions)
    partition = Partition(
        candidates.folder, frozen, "onnxruntime", tuple(regions), left, len(candidates.graph.computing())
    )
    return stitch_graph(candidates.graph, EngineSet(candidates.folder, partition, engines), PlanSource.FILE, Policy())


def check_stitched(graph: Graph, regions: list[Region], stitched: StitchedDef) -> None:
    """One EngineCall a region, the other ops as they were, each after all that it came after before. Regions in branches
    and loops are in functions."""
    nodes = {node.name: node.op for node in stitched.graph_def.node}
    inner = [node.op for function in stitched.graph_def.library.function for node in function.node_def]
    assert inner.count("EngineCall") == sum(bool(region.scope) for region in regions)
    regions = [region for region in regions if not region.scope]
    assert list(nodes.values()).count("EngineCall") == len(regions)
    inside = {op for region in regions for op in region.ops}
    assert all(nodes[name] == "IdentityN" for name in inside & set(nodes))
    outside = {graph.nodes[i].name for i in graph.computing()} - inside
    assert all(nodes[name] == graph.node_defs[name].op for name in outside)
    before, after = earlier(graph.graph_def), earlier(stitched.graph_def)
    assert all(before[name] & outside <= after[name] for name in outside)


def earlier(graph_def: tf.compat.v1.GraphDef) -> dict[str, set[str]]:
    """What must run before each node, by names alone.

    Raises:
        AssertionError: an input does not exist, a name is there twice, or there is a cycle.
    """
    sources = {node.name: {name.lstrip("^").split(":")[0] for name in node.input} for node in graph_def.node}
    assert len(sources) == len(graph_def.node)
    assert all(names <= set(sources) for names in sources.values())
    result: dict[str, set[str]] = {}
    waiting = dict(sources)
    while waiting:
        ready = [name for name, names in waiting.items() if names <= set(result)]
        assert ready, f"a cycle among {sorted(waiting)}"
        for name in ready:
            result[name] = sources[name].union(*(result[source] for source in sources[name]))
            del waiting[name]
    return result


def check_conversion(seed: int, backend: str, *, control_flow: bool = False) -> Report:
    """The stitched graph is acyclic and equals TensorFlow, its engines run (those in branches and loops that are not
    always taken apart), and every op is accounted for."""
    size = 3 + seed % 7 if control_flow else steps(seed)
    example = random_graph(seed, size, control_flow=control_flow)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = example.save(folder / "model")
        report = convert(
            str(model), folder / "out", Config(backend=backend, keep_stages=True, min_region=1, cache=False)
        )
        assert report.verification.passed
        assert report.ops_in_engines + len(report.left_in_tensorflow) == report.ops_total
        assert report.ops_in_engines == len({op for region in report.regions for op in region.ops})
        engines = storage.load(EngineSet, folder / "out/stages/build")
        graph = Graph(engines.partition.frozen)
        built = {engine.region for engine in engines.engines}
        regions = [region for region in engines.partition.regions if region.name in built]
        check_stitched(graph, regions, stitch_graph(graph, engines, PlanSource.FILE, Policy()))
        serve = tf.saved_model.load(str(folder / "out/saved_model")).signatures["serving_default"]
        for batch in (1, 3):
            inputs = {name: tf.constant(value) for name, value in random_inputs(seed, size, batch).items()}
            engine_op.reset_stats()
            expected, actual = example.module.serve(*inputs.values()), serve(**inputs)
            check_equal(expected, actual)
            stats = engine_op.stats()
            always = {region.name for region in engines.partition.regions if not region.scope} & built
            assert always <= set(stats) <= built
            assert all(region["engine_calls"] > 0 and not region["fallbacks"] for region in stats.values())
    return report


def check_equal(expected: dict[str, tf.Tensor], actual: dict[str, tf.Tensor]) -> None:
    """Floats within FP32's tolerance, anything else exactly."""
    assert set(expected) == set(actual)
    for key, value in expected.items():
        a, b = value.numpy(), actual[key].numpy()
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert np.array_equal(a, b) or (a.dtype.kind == "f" and relative_error(a, b) <= FP32), key


@pytest.mark.parametrize("seed", range(10))
def test_regions_are_convex_and_every_op_is_accounted_for_whatever_is_refused(seed: int) -> None:
    check_structure(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 40))
def test_more_regions_are_convex_and_every_op_is_accounted_for_whatever_is_refused(seed: int) -> None:
    check_structure(seed)


@pytest.mark.parametrize("seed", range(100, 106))
def test_a_random_graph_equals_tensorflow_after_conversion(seed: int) -> None:
    check_conversion(seed, "onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(106, 114))
def test_more_random_graphs_equal_tensorflow_after_conversion(seed: int) -> None:
    check_conversion(seed, "onnxruntime")


@pytest.mark.parametrize("seed", range(301, 303))
def test_a_random_graph_with_branches_and_loops_equals_tensorflow(seed: int) -> None:
    check_conversion(seed, "onnxruntime", control_flow=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(303, 308))
def test_more_random_graphs_with_branches_and_loops_equal_tensorflow(seed: int) -> None:
    check_conversion(seed, "onnxruntime" if seed % 3 else "auto", control_flow=True)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 206))
def test_a_random_graph_equals_tensorflow_after_conversion_with_tensorrt(seed: int) -> None:
    check_conversion(seed, "auto")


class _Found(tf.Module):
    """A small graph that a random one was reduced to."""

    def __init__(self, compute: Callable[[tf.Tensor], list[tf.Tensor]], width: int) -> None:
        super().__init__()
        spec = tf.TensorSpec([None, width], tf.float32, "x")
        self.serve = tf.function(
            lambda x: {f"y{i}": y for i, y in enumerate(compute(x))}, input_signature=[spec], autograph=False
        )


def check_all_in_engines(
    converted: Callable[..., Converted], compute: Callable[[tf.Tensor], list[tf.Tensor]], width: int
) -> None:
    module = _Found(compute, width)
    result = converted(module, backend="onnxruntime", min_region=1, cache=False)
    assert not {reason.reason for reason in result.report.left_in_tensorflow} - {Reason.TOO_SMALL}
    x = np.random.default_rng(0).random((3, width), np.float32)
    expected, actual = module.serve(tf.constant(x)), result.run({"x": x})
    check_equal(expected, {key: tf.constant(value) for key, value in actual.items()})


def test_two_splits_of_one_tensor_into_different_numbers_of_parts_stay_two(converted: Callable[..., Converted]) -> None:
    def compute(x: tf.Tensor) -> list[tf.Tensor]:
        value = tf.tanh(x)
        return [*tf.unstack(value, axis=1), *tf.split(value, 2, axis=1)]

    check_all_in_engines(converted, compute, width=4)


def test_constants_that_grappler_moves_to_a_smaller_tensor_take_its_shape_along(
    converted: Callable[..., Converted],
) -> None:
    check_all_in_engines(
        converted,
        lambda x: [
            (tf.tanh(x) + tf.reduce_mean(x, 0)) + tf.constant([1.0, 2.0, 3.0, 4.0]),
            tf.tile(x[:, :1], [1, 4]) * tf.reduce_sum(x, 1)[:, None] * 2.0,
        ],
        width=4,
    )
