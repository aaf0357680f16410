"""Clusters are convex, their quotient graph is acyclic, and time grows almost linearly."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.cluster import cluster


def acyclic_quotient(predecessors: list[list[int]], clusters: list[list[int]]) -> bool:
    owner = {node: -1 - i for i, members in enumerate(clusters) for node in members}
    after: dict[int, set[int]] = {}
    missing: dict[int, int] = {owner.get(n, n): 0 for n in range(len(predecessors))}
    for node, before in enumerate(predecessors):
        for b in before:
            tail, head = owner.get(b, b), owner.get(node, node)
            if tail != head and head not in after.setdefault(tail, set()):
                after[tail].add(head)
                missing[head] += 1
    ready = [v for v, count in missing.items() if not count]
    placed = 0
    while ready:
        placed += 1
        for v in after.get(ready.pop(), ()):
            missing[v] -= 1
            if not missing[v]:
                ready.append(v)
    return placed == len(missing)


def random_graph(seed: int, nodes: int, share: float, reach: int | None = None) -> tuple[list[list[int]], list[bool]]:
    rng = random.Random(seed)
    predecessors = [
        sorted({rng.randrange(max(0, n - (reach or n)), n) for _ in range(rng.choice((1, 1, 2, 3)))}) if n else []
        for n in range(nodes)
    ]
    return predecessors, [rng.random() < share for _ in range(nodes)]


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 60), st.floats(0.1, 1.0), st.sampled_from([None, 3, 10]))
def test_every_supported_node_is_in_one_cluster_and_no_cycle_appears(
    seed: int, nodes: int, share: float, reach: int | None
) -> None:
    predecessors, supported = random_graph(seed, nodes, share, reach)
    clusters = cluster(predecessors, supported)
    assert sorted(node for members in clusters for node in members) == [n for n in range(nodes) if supported[n]]
    assert acyclic_quotient(predecessors, clusters)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**9), st.integers(2, 40), st.floats(0.3, 1.0))
def test_no_two_neighbouring_clusters_could_still_be_merged(seed: int, nodes: int, share: float) -> None:
    predecessors, supported = random_graph(seed, nodes, share)
    clusters = cluster(predecessors, supported)
    owner = {node: i for i, members in enumerate(clusters) for node in members}
    neighbours = {(owner[b], owner[n]) for n in owner for b in predecessors[n] if b in owner and owner[b] != owner[n]}
    for first, second in neighbours:
        merged = [m for i, m in enumerate(clusters) if i not in (first, second)] + [clusters[first] + clusters[second]]
        assert not acyclic_quotient(predecessors, merged)


def test_a_path_through_an_unsupported_node_keeps_two_clusters_apart() -> None:
    assert cluster([[], [0], [0, 1]], [True, False, True]) == [[0], [2]]


def test_a_wholly_supported_graph_is_one_cluster_even_where_levels_differ() -> None:
    # 0 → 1(unsupported) → 2; 3 → 4, 4 reads 2: node 3 joins 4 although their levels differ.
    assert cluster([[], [0], [1], [], [3, 2]], [True, False, True, True, True]) == [[0], [2, 3, 4]]


@pytest.mark.slow
def test_time_grows_almost_linearly_from_ten_to_a_hundred_thousand_nodes() -> None:
    def seconds(nodes: int) -> float:
        predecessors, supported = random_graph(1, nodes, 0.98, 20)
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            cluster(predecessors, supported)
            best = min(best, time.process_time() - start)
        return best

    # About 10 where the machine is quiet (benchmarks/clustering.py); quadratic growth would be 100.
    assert seconds(100_000) <= 25 * seconds(10_000)
