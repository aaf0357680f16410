"""Stage 2: the largest candidate regions of a frozen graph, as ONNX."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

from stages import storage
from stages.artifacts import FrozenGraph, LeftOp, OnnxExport, Region
from stages.candidates import Candidates
from stages.graph import Graph
from stages.scopes import Scope


def export(
    frozen: FrozenGraph, out: Path, *, keep_in_tf: Sequence[str] = (), min_region: int | None = None
) -> OnnxExport:
    """Export what tf2onnx can translate, in the largest convex regions; a fully translatable graph is one ONNX model.

    The bodies of branches and loops that can't be translated whole are exported likewise, each as a graph of its own.

    Args:
        frozen: the graph; a node's dtype, rank and statefulness decide whether it may be a candidate.
        out: folder to write, with `regions/<name>/model.onnx`.
        keep_in_tf: op types, node names or patterns (`decoder/*`) that stay in TensorFlow.
        min_region: smallest number of computing ops that make a region; None: as many as pay for its boundary (`worth`).

    Raises:
        ArtifactError: `out` exists or can't be written.
        SplitError: the graph has a cycle.
        ExportError: the installed tf2onnx is not one that GraftRT knows.
    """
    with storage.write_folder(out) as folder:
        regions: list[Region] = []
        left: list[LeftOp] = []
        tried = 0
        scopes = deque([Scope(Graph(frozen))])
        while scopes:
            scope = scopes.popleft()
            candidates = Candidates(
                scope.graph, folder / "regions", keep_in_tf=keep_in_tf, min_region=min_region, first=tried
            )
            found = candidates.settle()
            tried = candidates.tried
            regions += found
            left += candidates.left(found)
            scopes.extend(scope.inner(found))
        storage.save(OnnxExport(folder, frozen, tuple(regions), tuple(left)), folder)
    return storage.load(OnnxExport, out)
