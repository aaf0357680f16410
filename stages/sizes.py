"""Sizes of a model's inputs: the shape profiles, given by the user or learnt from samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.artifacts import FrozenGraph, Shape, ShapeRange, Tensor
from stages.compare import Array
from stages.errors import SplitError

DEFAULT_BATCHES = (1, 8, 32)
"""Smallest, usual and largest size of an open first axis where the user gives no shapes."""
DEFAULT_MAX_PROFILES = 3

Point = tuple[tuple[int, ...], ...]
"""A shape for each of the model's inputs."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of every graph input at one point: `shapes[i]` belongs to `FrozenGraph.inputs[i]`."""

    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class SizeRange:
    """One profile of the whole model."""

    minimum: Sizes
    optimum: Sizes
    maximum: Sizes

    def includes(self, sizes: Sizes) -> bool:
        return all(
            all(low <= axis <= high for low, axis, high in zip(*axes, strict=True))
            for axes in zip(self.minimum.shapes, sizes.shapes, self.maximum.shapes, strict=True)
        )


def size_ranges(
    frozen: FrozenGraph,
    given: Sequence[ShapeRange],
    samples: Sequence[Mapping[str, Array]] = (),
    max_profiles: int = DEFAULT_MAX_PROFILES,
) -> tuple[SizeRange, ...]:
    """The profiles of the model's inputs, the smallest first.

    Args:
        given: ranges for inputs by tensor name, node name or signature keyword; an input that is given n times has n
            profiles, and one that is given once has that range in all of them.
        samples: real inputs, by tensor name; an open axis that has no range takes the sizes that it has in them. Without
            ranges they are grouped by size (not counting an open first axis), a profile for each group.
        max_profiles: the most groups.

    Raises:
        SplitError: an unknown input; a range that contradicts the model's shape; an open axis other than the first
            without a range; differing numbers of ranges.
    """
    by_input: dict[int, list[ShapeRange]] = {}
    for entry in given:
        by_input.setdefault(position(frozen, entry.input), []).append(entry)
    shapes = [tuple(tuple(sample[tensor.name].shape) for tensor in frozen.inputs) for sample in samples]
    groups = [shapes] if given else _groups([tensor.shape for tensor in frozen.inputs], shapes, max_profiles)
    count = max((len(entries) for entries in by_input.values()), default=len(groups))
    columns: list[list[tuple[tuple[int, ...], ...]]] = []
    for i, tensor in enumerate(frozen.inputs):
        entries = by_input.get(i, [])
        if len(entries) not in (0, 1, count):
            raise SplitError(
                f"input {frozen.input_names[i]}: {len(entries)} shape ranges, but another input has {count}",
                "give each input one range, or as many as the others",
            )
        rows = [_checked(tensor, frozen.input_names[i], entry) for entry in entries] or _learnt(
            tensor, frozen.input_names[i], [[point[i] for point in group] for group in groups]
        )
        columns.append(rows if len(rows) == count else rows * count)
    return tuple(
        dict.fromkeys(
            SizeRange(*(Sizes(tuple(column[n][point] for column in columns)) for point in range(3)))
            for n in range(count)
        )
    )


def _groups(patterns: Sequence[Shape | None], points: Sequence[Point], most: int) -> list[list[Point]]:
    """Points of similar size together, in at most `most` groups, the smallest first.

    Neighbours in order of volume are merged, always the pair that wastes least: what padding every point of a group to
    the group's largest size per axis would add (Ward's method, with this cost). An open first axis does not count.
    """

    def counted(point: Point) -> Point:
        return tuple(
            shape[1:] if pattern is None or (pattern and pattern[0] is None) else shape
            for shape, pattern in zip(point, patterns, strict=True)
        )

    by_size: dict[Point, list[Point]] = {}
    for point in points:
        by_size.setdefault(counted(point), []).append(point)
    groups = [by_size[size] for size in sorted(by_size, key=_volume)] or [[]]

    def waste(group: Sequence[Point]) -> int:
        sizes = [counted(point) for point in group]
        box = tuple(tuple(map(max, zip(*shapes, strict=True))) for shapes in zip(*sizes, strict=True))
        return _volume(box) * len(sizes) - sum(map(_volume, sizes))

    def cost(k: int) -> int:
        return waste(groups[k] + groups[k + 1]) - waste(groups[k]) - waste(groups[k + 1])

    costs = [cost(k) for k in range(len(groups) - 1)]
    while len(groups) > most:
        k = costs.index(min(costs))
        groups[k : k + 2] = [groups[k] + groups[k + 1]]
        del costs[k]
        for neighbour in (k - 1, k):
            if 0 <= neighbour < len(costs):
                costs[neighbour] = cost(neighbour)
    return groups


def _volume(point: Point) -> int:
    return sum(math.prod(shape) for shape in point)


def _learnt(
    tensor: Tensor, keyword: str, groups: Sequence[Sequence[tuple[int, ...]]]
) -> list[tuple[tuple[int, ...], ...]]:
    """Smallest, usual and largest size of an input, for each group of sizes seen.

    A profile's usual size is its group's; it also covers all smaller sizes, so that nothing between two groups is left
    out. Every profile covers an open first axis from 1 to 32 and as far as seen.
    """
    seen = [shape for group in groups for shape in group]
    pattern = tensor.shape if tensor.shape is not None or not seen else (None,) * len(seen[0])
    if pattern is None or (None in pattern[1:] and not seen):
        raise SplitError(
            f"input {keyword}: shape {shape_text(pattern)} is open and has no range",
            f"--shape {keyword}=MIN,OPT,MAX, or --samples inputs.npz",
        )
    rows = []
    for n, group in enumerate(groups):
        covered = [shape for smaller in groups[: n + 1] for shape in smaller]
        columns = []
        for i, axis in enumerate(pattern):
            if axis is not None:
                columns.append((axis, axis, axis))
            elif i == 0:
                sizes = [shape[0] for shape in seen] + list(DEFAULT_BATCHES)
                columns.append((min(sizes), statistics.median_low(sizes), max(sizes)))
            else:
                usual = statistics.median_low([shape[i] for shape in group])
                columns.append((min(shape[i] for shape in seen), usual, max(shape[i] for shape in covered)))
        rows.append(tuple(tuple(column[point] for column in columns) for point in range(3)))
    return rows


def position(frozen: FrozenGraph, name: str) -> int:
    """Which input a keyword, node or tensor name means.

    Raises:
        SplitError: none.
    """
    for i, tensor in enumerate(frozen.inputs):
        if name in (frozen.input_names[i], tensor.name, tensor.name.split(":")[0]):
            return i
    raise SplitError(f"{name}: the model has no such input", f"its inputs are {', '.join(frozen.input_names)}")


def _checked(tensor: Tensor, keyword: str, entry: ShapeRange) -> tuple[tuple[int, ...], ...]:
    points = (entry.minimum, entry.optimum, entry.maximum)
    text = ",".join("x".join(map(str, point)) for point in points)
    if not all(fits(point, tensor.shape) for point in points):
        raise SplitError(
            f"input {keyword}: range {text} does not fit its shape {shape_text(tensor.shape)}", "correct --shape"
        )
    if any(not low <= usual <= high for low, usual, high in zip(*points, strict=True)):
        raise SplitError(f"input {keyword}: range {text} is not in order", "give it as MIN,OPT,MAX")
    return points


def fits(shape: Sequence[int], pattern: Shape | None) -> bool:
    """Whether a shape has the rank and the fixed axes of a pattern."""
    return pattern is None or (
        len(shape) == len(pattern) and all(p is None or p == s for s, p in zip(shape, pattern, strict=True))
    )


def shape_text(shape: Shape | None) -> str:
    """A shape for people: `(?, 224, 224, 3)`, and `?` where the rank is unknown."""
    return "?" if shape is None else "(" + ", ".join("?" if axis is None else str(axis) for axis in shape) + ")"
