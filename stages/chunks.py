"""Large clusters in pieces: TensorRT's builder takes more than quadratic time in the size of a network."""

from __future__ import annotations

from collections.abc import Sequence

from stages.graph import Graph

MOST_OPS = 2_000
"""Ops of a region. TensorRT for RTX 1.7 built a chain of 2,000 ops in 3.6 s and one of 4,000 in 30 s (two cores)."""


def chunks(graph: Graph, ops: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Cut a convex cluster into consecutive pieces of at most `most` ops, each where few tensors cross.

    `ops` is in topological order. A stretch of it is convex like the whole; and since no path leaves the whole and comes
    back, pieces and other clusters can't wait for one another in a circle.
    """
    if len(ops) <= most:
        return [tuple(ops)]
    crossing = _crossing(graph, ops)
    pieces = []
    start = 0
    while len(ops) - start > most:
        # Not in the first half, so that there are few pieces; of equals the last, so that they are large.
        places = range(start + most, start + most // 2, -1)
        end = min(places, key=lambda place: crossing[place])
        pieces.append(tuple(ops[start:end]))
        start = end
    return [*pieces, tuple(ops[start:])]


def _crossing(graph: Graph, ops: Sequence[int]) -> list[int]:
    """For each place in `ops`, how many tensors made before it are read after it."""
    position = {node: place for place, node in enumerate(ops)}
    change = [0] * (len(ops) + 1)
    for node, place in position.items():
        last: dict[int, int] = {}
        for consumer, output in graph.consumers[node]:
            if consumer in position:
                last[output] = max(last.get(output, 0), position[consumer])
        for reader in last.values():
            change[place + 1] += 1
            change[reader + 1] -= 1
    crossing, alive = [], 0
    for step in change:
        alive += step
        crossing.append(alive)
    return crossing
