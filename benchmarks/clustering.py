"""Clustering a synthetic graph of 10,000 and 100,000 nodes: CPU seconds, best of several runs, and how they grow.

The graph looks like a deep model: each node reads one to three of the last 20, and 2 % of the nodes are unsupported.
"""

from __future__ import annotations

import random
import time

from benchmarks import record
from stages.cluster import cluster

RUNS = 15


def model_like_graph(nodes: int, seed: int = 1) -> tuple[list[list[int]], list[bool]]:
    rng = random.Random(seed)
    predecessors = [
        sorted({rng.randrange(max(0, n - 20), n) for _ in range(rng.choice((1, 1, 2, 3)))}) if n else []
        for n in range(nodes)
    ]
    return predecessors, [rng.random() < 0.98 for _ in range(nodes)]


def measure(nodes: int) -> tuple[float, int]:
    predecessors, supported = model_like_graph(nodes)
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        clusters = cluster(predecessors, supported)
        seconds.append(time.process_time() - start)
    return min(seconds), len(clusters)


def main() -> None:
    (small, few), (large, many) = measure(10_000), measure(100_000)
    record.write(
        "clustering",
        {
            "seconds_10000_nodes": round(small, 4),
            "seconds_100000_nodes": round(large, 4),
            "growth": round(large / small, 2),
            "clusters_10000_nodes": few,
            "clusters_100000_nodes": many,
            "runs": RUNS,
        },
    )


if __name__ == "__main__":
    main()
