"""What the report's picture of a graph is drawn from: `graph.json`, beside `report.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.scopes import Group, group_nodes
from stages.artifacts import Tensor
from stages.errors import ArtifactError
from stages.graph import Graph
from stages.work import estimate_work

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class PictureNode:
    """One op. `output` describes its first result, `group` is the position of the group that it lies in; `flops` and
    `bytes` are estimates (`stages.work`)."""

    name: str
    op: str
    output: str
    group: int | None
    flops: int
    bytes: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """A frozen graph without its constants.

    Attributes:
        nodes: in topological order.
        edges: pairs of positions in `nodes`, source first; `controls` likewise, for what only waits.
        hidden: how many needed constants, and ops that fold into them, are not drawn.
        sizes: the inputs' sizes that the work was estimated for.
    """

    nodes: tuple[PictureNode, ...]
    edges: tuple[tuple[int, int], ...]
    controls: tuple[tuple[int, int], ...]
    groups: tuple[Group, ...]
    hidden: int
    sizes: dict[str, list[int]]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), separators=(",", ":")) + "\n")

    def to_json(self) -> dict[str, object]:
        """One list for each property: ten thousand nodes as objects would be twice as long."""
        nodes = self.nodes
        return {
            "format_version": FORMAT_VERSION,
            "names": [node.name for node in nodes],
            "ops": [node.op for node in nodes],
            "outputs": [node.output for node in nodes],
            "group_of": [node.group for node in nodes],
            "flops": [node.flops for node in nodes],
            "bytes": [node.bytes for node in nodes],
            "assumed": [i for i, node in enumerate(nodes) if not node.exact],
            "edges": self.edges,
            "controls": self.controls,
            "groups": [[group.label, group.parent] for group in self.groups],
            "hidden": self.hidden,
            "sizes": self.sizes,
        }

    @staticmethod
    def read(path: Path) -> Picture:
        """Read a `graph.json`.

        Raises:
            ArtifactError: it is missing, damaged, or of a newer format.
        """
        try:
            body = json.loads(path.read_text())
            if body["format_version"] > FORMAT_VERSION:
                raise ArtifactError(f"{path}: has format version {body['format_version']}", "upgrade graftrt")
            assumed = set(body["assumed"])
            columns = [body[key] for key in ("names", "ops", "outputs", "group_of", "flops", "bytes")]
            columns.append([i not in assumed for i in range(len(body["names"]))])
            nodes = [PictureNode(*row) for row in zip(*columns, strict=True)]
            return Picture(
                tuple(nodes),
                tuple((source, target) for source, target in body["edges"]),
                tuple((source, target) for source, target in body["controls"]),
                tuple(Group(label, parent) for label, parent in body["groups"]),
                body["hidden"],
                body["sizes"],
            )
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: no such file", "give a folder that this version's convert wrote") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: is damaged: {error}", "convert the model again") from error


def make_picture(graph: Graph, sizes: Mapping[str, Sequence[int]]) -> Picture:
    """The picture of a frozen graph.

    Args:
        sizes: the shape of each of the model's inputs, by tensor name, to estimate the work for.
    """
    drawn = [i for i, node in enumerate(graph.nodes) if node.needed and not node.free and node.op != "NoOp"]
    place = {i: n for n, i in enumerate(drawn)}
    groups, owner = group_nodes([graph.nodes[i].name for i in drawn])
    work = estimate_work(graph, sizes)
    nodes = []
    for i, group in zip(drawn, owner, strict=True):
        node = graph.nodes[i]
        estimate = work.get(node.name)
        flops, moved, exact = (estimate.flops, estimate.bytes, estimate.exact) if estimate else (0, 0, True)
        output = _text(node.outputs[0]) if node.outputs else ""
        nodes.append(PictureNode(node.name, node.op, output, group, flops, moved, exact))
    edges = dict.fromkeys((place[s], place[i]) for i in drawn for s, _ in graph.nodes[i].inputs if s in place)
    waits = dict.fromkeys((place[s], place[i]) for i in drawn for s in graph.nodes[i].controls if s in place)
    return Picture(
        tuple(nodes),
        tuple(edges),
        tuple(edge for edge in waits if edge not in edges),
        tuple(groups),
        sum(node.needed and node.free for node in graph.nodes),
        {name: list(shape) for name, shape in sizes.items()},
    )


def _text(tensor: Tensor) -> str:
    """`float32 (?, 7, 7)`."""
    if tensor.shape is None:
        return f"{tensor.dtype} of unknown rank"
    return f"{tensor.dtype} ({', '.join('?' if axis is None else str(axis) for axis in tensor.shape)})"
