"""Convex clusters of supported nodes, in near-linear time.

First every node gets a level, which never falls along an edge and rises where a supported value enters an
unsupported node. Supported neighbours of one level form a cluster: a path that leaves it through anything else
ends on a higher level, so it can't come back. Then neighbouring clusters that no other path joins are merged. The
topological order of the quotient graph is kept as clusters merge, so that each test looks only at the second one's
ancestors that lie between the two (after Pearce and Kelly, "A dynamic topological sort algorithm for directed acyclic
graphs", 2007; the order is a list of labels with gaps, so that one search is enough).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

SEARCH_LIMIT = 4_000
"""Edges that one merge test may look at; past it the two clusters stay apart, which is correct, only less good."""
SEARCH_LIMIT_PER_NODE = 20
"""Edges that all merge tests together may look at, per node of the graph."""
_GAP = 1 << 1000
"""Between the labels of neighbours: each move between two of them halves what is left."""


def cluster(predecessors: Sequence[Sequence[int]], supported: Sequence[bool]) -> list[list[int]]:
    """Partition the supported nodes of an acyclic graph into convex clusters whose quotient graph is acyclic.

    Args:
        predecessors: for each node, its data and control inputs; nodes are numbered in topological order.
        supported: for each node, whether it may be in a cluster.

    Returns:
        The clusters, each a sorted list of node numbers, in topological order.
    """
    quotient = _Quotient(predecessors, supported)
    quotient.merge_neighbours()
    return quotient.clusters()


class _Quotient:
    """The graph with each cluster shrunk to one vertex; a vertex is named by one of its nodes.

    `before` and `after` may name vertices by nodes that were merged since: `root` says what they are now.
    """

    def __init__(self, predecessors: Sequence[Sequence[int]], supported: Sequence[bool]) -> None:
        count = len(predecessors)
        self.supported = supported
        self.parent = parent = list(range(count))
        level = [0] * count
        for node, before in enumerate(predecessors):
            if not before:
                continue
            if not supported[node]:
                level[node] = max(level[b] + supported[b] for b in before)
                continue
            here = level[node] = max(level[b] for b in before)
            root = node
            for b in before:
                if supported[b] and level[b] == here:
                    other = b
                    while parent[other] != other:  # `self.root`, in place: most of the time goes here
                        parent[other] = other = parent[parent[other]]
                    # Towards the older root: trees stay flat as the graph is walked.
                    root, younger = (other, root) if other < root else (root, other)
                    parent[younger] = root
        self.vertices = [node for node, older in enumerate(parent) if older == node]
        self.before: dict[int, set[int]] = {vertex: set() for vertex in self.vertices}
        self.after: dict[int, set[int]] = {vertex: set() for vertex in self.vertices if supported[vertex]}
        """Of clusters, and only clusters among their successors: nothing else can be merged."""
        order_after: dict[int, list[int]] = {vertex: [] for vertex in self.vertices}
        roots: list[int] = []
        for node, older in enumerate(parent):
            roots.append(node if older == node else roots[older])
        for node, sources in enumerate(predecessors):
            here = roots[node]
            for b in sources:
                there = roots[b]
                if there != here and there not in self.before[here]:
                    self.before[here].add(there)
                    order_after[there].append(here)
                    if supported[here] and supported[there]:
                        self.after[there].add(here)
        self._order(order_after)
        self.budget = SEARCH_LIMIT_PER_NODE * count

    def root(self, node: int) -> int:
        parent = self.parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def clusters(self) -> list[list[int]]:
        members: dict[int, list[int]] = {}
        for node, is_supported in enumerate(self.supported):
            if is_supported:
                members.setdefault(self.root(node), []).append(node)
        return [members[vertex] for vertex in sorted(members, key=self.label.__getitem__)]

    def merge_neighbours(self) -> None:
        for start in sorted(self.vertices, key=self.label.__getitem__):
            if not self.supported[start] or self.root(start) != start:
                continue
            vertex = start
            # Nearest first: what lies between two clusters is merged, or known to stay apart, before they are tested.
            nearest = [(self.label[v], v) for v in map(self.root, self.after[vertex])]
            heapq.heapify(nearest)
            tried = {vertex}
            while nearest:
                label, other = heapq.heappop(nearest)
                if other in tried or self.root(other) != other:
                    continue
                if self.label[other] != label:  # it was moved since
                    heapq.heappush(nearest, (self.label[other], other))
                    continue
                tried.add(other)
                ancestors = self._ancestors_between(vertex, other)
                if ancestors is None:
                    continue
                for v in map(self.root, self.after[other]):
                    heapq.heappush(nearest, (self.label[v], v))
                vertex = self._merge(vertex, other, ancestors)
                tried.add(vertex)

    def _ancestors_between(self, first: int, second: int) -> list[int] | None:
        """Ancestors of `second` that come after `first` in the order, in order; None if `first` leads to one of them,
        or if the search grew past its limit."""
        low = self.label[first]
        seen: set[int] = set()
        pending = [second]
        looked = 0
        while pending:
            vertex = pending.pop()
            for source in self.before[vertex]:
                looked += 1
                here = self.root(source)
                if here == first and vertex != second:
                    self.budget -= looked
                    return None
                if here not in seen and here != second and self.label[here] > low:
                    seen.add(here)
                    pending.append(here)
            if looked > SEARCH_LIMIT or looked > self.budget:
                self.budget -= looked
                return None
        self.budget -= looked
        return sorted(seen, key=self.label.__getitem__)

    def _merge(self, first: int, second: int, ancestors: list[int]) -> int:
        """Merge two clusters at the first one's place, the second's ancestors moved just before it."""
        for vertex in ancestors:
            self._move_before(vertex, first)
        keep, gone = (first, second) if len(self.before[first]) >= len(self.before[second]) else (second, first)
        if keep is second:
            self._move_before(second, first)
        self._unlink(gone)
        self.parent[gone] = keep
        self.before[keep] |= self.before[gone]
        if len(self.after[keep]) < len(self.after[gone]):
            self.after[keep], self.after[gone] = self.after[gone], self.after[keep]
        self.after[keep] |= self.after[gone]
        del self.before[gone], self.after[gone]
        return keep

    def _order(self, after: dict[int, list[int]]) -> None:
        """Set the first topological order: depth first, so that what belongs together lies together."""
        missing = {vertex: len(self.before[vertex]) for vertex in self.vertices}
        ready = [vertex for vertex in reversed(self.vertices) if not missing[vertex]]
        order: list[int] = []
        while ready:
            vertex = ready.pop()
            order.append(vertex)
            for v in after[vertex]:
                missing[v] -= 1
                if not missing[v]:
                    ready.append(v)
        end = len(self.parent)
        self.previous = [end] * (end + 1)
        self.next = [end] * (end + 1)
        for left, right in zip([end, *order], [*order, end], strict=True):
            self.next[left], self.previous[right] = right, left
        self.label = [0] * (end + 1)
        self._relabel()

    def _relabel(self) -> None:
        end = len(self.parent)
        vertex, label = self.next[end], 0
        while vertex != end:
            label += _GAP
            self.label[vertex] = label
            vertex = self.next[vertex]

    def _unlink(self, vertex: int) -> None:
        left, right = self.previous[vertex], self.next[vertex]
        self.next[left], self.previous[right] = right, left

    def _move_before(self, vertex: int, place: int) -> None:
        self._unlink(vertex)
        left = self.previous[place]
        if self.label[place] - self.label[left] < 2:
            self._relabel()
        self.label[vertex] = (self.label[left] + self.label[place]) // 2
        self.previous[vertex], self.next[vertex] = left, place
        self.next[left] = self.previous[place] = vertex
