"""Properties of every conversion, on random graphs of random ops."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures.random_graphs import random_graph
from pipeline import Config, convert
from stages import engine_op, storage
from stages.artifacts import EngineSet
from stages.candidates import Candidates
from stages.freeze import freeze
from stages.graph import Graph
from stages.stitching import PlanSource, stitch_graph
from tests.conftest import relative_error
from tests.test_cluster import acyclic_quotient

FP32 = 1e-5


def steps(seed: int) -> int:
    return 4 + seed % 37


def candidates(seed: int, folder: Path) -> Candidates:
    model = random_graph(seed, steps(seed)).save(folder / "model")
    return Candidates(Graph(freeze(str(model), folder / "freeze")), folder / "regions", keep_in_tf=(), min_region=1)


def check_candidates(seed: int) -> None:
    """Candidate regions are convex together, disjoint, and every op is in one or left with a reason."""
    with tempfile.TemporaryDirectory() as folder:
        found = candidates(seed, Path(folder))
        graph, regions = found.graph, found.settle()
        members = [[graph.number[name] for name in region.ops] for region in regions]
        inside = [i for ops in members for i in ops]
        assert len(inside) == len(set(inside))
        left = {graph.number[op.node]: op for op in found.left(regions)}
        assert set(left) | set(inside) == set(graph.computing())
        assert not set(left) & set(inside)
        assert all(op.reason.value for op in left.values())
        predecessors = [sorted(p for p in node.predecessors if not graph.nodes[p].free) for node in graph.nodes]
        assert acyclic_quotient(predecessors, members)


def check_conversion(seed: int, backend: str) -> None:
    """The stitched graph is acyclic and equals TensorFlow, its engines run, and every op is accounted for."""
    example = random_graph(seed, steps(seed))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = example.save(folder / "model")
        report = convert(str(model), folder / "out", Config(backend=backend, keep_stages=True, min_region=1))
        assert report.verification.passed
        assert report.ops_in_engines + len(report.left_in_tensorflow) == report.ops_total
        assert report.ops_in_engines == len({op for region in report.regions for op in region.ops})
        engines = storage.load(EngineSet, folder / "out/stages/build")
        stitched = stitch_graph(Graph(engines.partition.frozen), engines, PlanSource.FILE, "native")
        assert acyclic(stitched.graph_def)
        loaded = tf.saved_model.load(str(folder / "out/saved_model"))
        serve = loaded.signatures["serving_default"]
        for batch in (1, 3):
            inputs = {name: tf.constant(np.resize(value, (batch, 4))) for name, value in example.inputs.items()}
            engine_op.reset_stats()
            expected, actual = example.module.serve(*inputs.values()), serve(**inputs)
            assert set(expected) == set(actual)
            for key, value in expected.items():
                a, b = value.numpy(), actual[key].numpy()
                assert a.dtype == b.dtype
                assert a.shape == b.shape
                assert np.array_equal(a, b) or (a.dtype.kind == "f" and relative_error(a, b) <= FP32), key
            stats = engine_op.stats()
            assert set(stats) == {region.name for region in report.regions}
            assert not any(region["fallbacks"] for region in stats.values())


def acyclic(graph_def: tf.compat.v1.GraphDef) -> bool:
    """By names alone, and that every input exists."""
    sources = {node.name: {name.lstrip("^").split(":")[0] for name in node.input} for node in graph_def.node}
    assert len(sources) == len(graph_def.node)
    assert all(before <= set(sources) for before in sources.values())
    while sources:
        ready = {name for name, before in sources.items() if not before & set(sources)}
        if not ready:
            return False
        sources = {name: before for name, before in sources.items() if name not in ready}
    return True


@pytest.mark.parametrize("seed", range(40))
def test_candidates_are_convex_and_every_op_is_accounted_for(seed: int) -> None:
    check_candidates(seed)


@pytest.mark.parametrize("seed", range(100, 112))
def test_a_random_graph_equals_tensorflow_after_conversion(seed: int) -> None:
    check_conversion(seed, "onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 230))
def test_a_random_graph_equals_tensorflow_after_conversion_with_tensorrt(seed: int) -> None:
    check_conversion(seed, "auto")
