"""Why ops stay in TensorFlow, in words for people: grouped, with what can be done about it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from stages.artifacts import LeftOp, Reason

REMEDIES: dict[Reason, str] = {
    Reason.REFUSED: "another version of TensorRT, which may take it, or other ops in the model",
    Reason.BUILD_FAILED: "--time-limit or --workspace-mib if it speaks of time or memory; else another version of TensorRT",
    Reason.DTYPE: "cast to float32 in the model, if it is a number and that is precise enough",
    Reason.UNKNOWN_RANK: "shapes in the model's signature, or tf.ensure_shape in the model",
    Reason.CONTROL_FLOW: "save the model again from TensorFlow 2",
    Reason.TOO_SMALL: "--min-region 1, if an engine of its own is worth its boundary",
    Reason.CYCLE: "--min-region 1, which makes it a region of its own if it computes",
    Reason.USER: "drop --keep-in-tf",
    Reason.WRONG_RESULT: "--samples with real inputs, if random ones are invalid for the model",
    Reason.SHAPE_TENSOR: "compute the shape from constants, or from tf.shape of a tensor inside the region",
    Reason.UNSAFE: "other ops in the model; nothing where the detail speaks of an effect, a table or random numbers",
}
"""What a user can do; nothing is said where nothing can be done."""

_TENSOR = re.compile(r"(?<![\w/.-])[\w/.-]+:\d+(?![\w:])")


@dataclass(frozen=True, slots=True)
class Group:
    """Ops of one type that stay for one reason. `detail` is that of the first; `remedy` is empty where nothing helps."""

    op: str
    reason: Reason
    detail: str
    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        where = self.layers[0] if len(self.layers) == 1 else f"{self.layers[0]} … {self.layers[-1]}"
        return f"{len(self.nodes)} × {self.op} in {where}: {self.reason.value}" + (
            f": {self.detail}" if self.detail else ""
        )


def groups(left: Iterable[LeftOp]) -> list[Group]:
    """Ops of one type, reason and detail together (whatever tensors and nodes the detail names), most frequent first."""
    found: dict[tuple[str, Reason, str], list[LeftOp]] = {}
    for entry in left:
        pattern = _TENSOR.sub("…", entry.detail.replace(entry.node, "…"))
        found.setdefault((entry.op, entry.reason, pattern), []).append(entry)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [
        Group(
            op,
            reason,
            entries[0].detail,
            tuple(entry.node for entry in entries),
            tuple(dict.fromkeys(entry.layer for entry in entries)),
            REMEDIES.get(reason, ""),
        )
        for (op, reason, _), entries in ordered
    ]


def lines(left: Iterable[LeftOp]) -> list[str]:
    """The groups, a line each, then what can be done, a line for each reason that has something."""
    found = groups(left)
    remedies = dict.fromkeys((group.reason, group.remedy) for group in found if group.remedy)
    return [f"left in TensorFlow: {group}" for group in found] + [
        f"  {reason.value}: try {remedy}" for reason, remedy in remedies
    ]


def by_layer(left: Iterable[LeftOp]) -> dict[str, list[LeftOp]]:
    """The ops by the Keras layer or name scope that they lie in, in the graph's order."""
    found: dict[str, list[LeftOp]] = {}
    for entry in left:
        found.setdefault(entry.layer, []).append(entry)
    return found
