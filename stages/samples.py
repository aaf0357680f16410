"""Inputs to run a model on: given by the user, or drawn from shapes and dtypes."""

from __future__ import annotations

import statistics
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.artifacts import FrozenGraph, Shape, ShapeRange, Tensor
from stages.compare import Array
from stages.errors import SplitError

DEFAULT_BATCHES = (1, 8, 32)
"""Smallest, usual and largest size of an open first axis where the user gives no shapes."""
SECOND_BATCH = 3
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "")


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


def size_ranges(
    frozen: FrozenGraph, given: Sequence[ShapeRange], samples: Sequence[Mapping[str, Array]] = ()
) -> tuple[SizeRange, ...]:
    """The profiles of the model's inputs.

    Args:
        samples: real inputs, by tensor name; an open axis that has no range takes the sizes that it has in them.
        given: ranges for inputs by tensor name, node name or signature keyword; an input that is given n times has n
            profiles, and one that is given once has that range in all of them.

    Raises:
        SplitError: an unknown input; a range that contradicts the model's shape; an open axis other than the first
            without a range; differing numbers of ranges.
    """
    by_input: dict[int, list[ShapeRange]] = {}
    for entry in given:
        by_input.setdefault(_position(frozen, entry.input), []).append(entry)
    count = max((len(entries) for entries in by_input.values()), default=1)
    columns: list[list[tuple[tuple[int, ...], ...]]] = []
    for i, tensor in enumerate(frozen.inputs):
        entries = by_input.get(i, [])
        if len(entries) not in (0, 1, count):
            raise SplitError(
                f"input {frozen.input_names[i]}: {len(entries)} shape ranges, but another input has {count}",
                "give each input one range, or as many as the others",
            )
        rows = [_checked(tensor, frozen.input_names[i], entry) for entry in entries] or [
            _default(tensor, frozen.input_names[i], [sample[tensor.name].shape for sample in samples])
        ]
        columns.append(rows if len(rows) == count else rows * count)
    return tuple(
        SizeRange(*(Sizes(tuple(column[n][point] for column in columns)) for point in range(3))) for n in range(count)
    )


def draw(frozen: FrozenGraph, sizes: Sizes, seed: int, like: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """Values for every input, by tensor name: floats uniform in [0, 1), integers 0 or 1 (both are valid indices into
    almost anything), images of uint8 in large soft patches, strings from a few words.

    Args:
        like: a real sample; where only the first axis must differ, its rows are repeated or left out instead.
    """
    rng = np.random.default_rng(seed)
    return {
        tensor.name: _resized(like[tensor.name], shape)
        if like and like[tensor.name].shape[1:] == shape[1:] and like[tensor.name].size
        else _draw(rng, tensor.dtype, shape)
        for tensor, shape in zip(frozen.inputs, sizes.shapes, strict=True)
    }


def verification_samples(
    frozen: FrozenGraph, ranges: Sequence[SizeRange], given: Sequence[Mapping[str, Array]]
) -> list[dict[str, Array]]:
    """What to compare on: the user's samples, and two sizes besides where any axis is open (the first sample's rows, or
    random values where there is none)."""
    smallest, largest = ranges[0].minimum, ranges[0].maximum
    between = Sizes(
        tuple(
            tuple(min(max(SECOND_BATCH, a), b) if a != b else a for a, b in zip(low, high, strict=True))
            for low, high in zip(smallest.shapes, largest.shapes, strict=True)
        )
    )
    # Every size must lie in a profile: where the first has one size only, the second size is the next profile's.
    second = ranges[1].minimum if between == smallest and len(ranges) > 1 else between
    first = given[0] if given else None
    drawn = [draw(frozen, sizes, seed, first) for seed, sizes in enumerate(dict.fromkeys((smallest, second)))]
    return [dict(sample) for sample in given] + drawn


def read(frozen: FrozenGraph, path: Path | None) -> list[dict[str, Array]]:
    """Samples (none without a path) from an `.npz` file with one array for each input, named by its keyword: one sample a file.

    Raises:
        SplitError: no such file, a missing or unknown name, a wrong dtype or shape, NaN.
    """
    if path is None:
        return []
    remedy = "write it with numpy.savez(path, input=array)"
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise SplitError(f"samples {path}: hold one array without a name", remedy)
        with loaded as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SplitError(f"samples {path}: can't be read: {error}", remedy) from error
    return [check(frozen, arrays)]


def check(frozen: FrozenGraph, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """One sample, keyed by signature keyword or tensor name, as a dict by tensor name; strings become object arrays.

    Raises:
        SplitError: a missing or unknown name, a wrong dtype or shape, NaN.
    """
    result: dict[str, Array] = {}
    for name, array in arrays.items():
        tensor = frozen.inputs[_position(frozen, name)]
        if tensor.dtype == "string":
            array = array.astype(object)  # noqa: PLW2901
        elif array.dtype.name != tensor.dtype:
            raise SplitError(f"sample {name}: dtype {array.dtype.name}", f"the model's input is {tensor.dtype}")
        if not _fits(array.shape, tensor.shape):
            raise SplitError(f"sample {name}: shape {array.shape}", f"the model's input is {_text(tensor.shape)}")
        if array.dtype.kind in "fc" and np.isnan(array).any():
            raise SplitError(f"sample {name}: contains NaN", "give samples without NaN")
        result[tensor.name] = array
    missing = [n for n, t in zip(frozen.input_names, frozen.inputs, strict=True) if t.name not in result]
    if missing:
        raise SplitError(f"samples: no array for input {', '.join(missing)}", "add it to the samples")
    return result


def _position(frozen: FrozenGraph, name: str) -> int:
    for i, tensor in enumerate(frozen.inputs):
        if name in (frozen.input_names[i], tensor.name, tensor.name.split(":")[0]):
            return i
    raise SplitError(f"{name}: the model has no such input", f"its inputs are {', '.join(frozen.input_names)}")


def _default(tensor: Tensor, keyword: str, seen: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    pattern = tensor.shape if tensor.shape is not None or not seen else (None,) * len(seen[0])
    if pattern is None or (None in pattern[1:] and not seen):
        raise SplitError(
            f"input {keyword}: shape {_text(pattern)} is open and has no range",
            f"--shape {keyword}=MIN,OPT,MAX, or --samples inputs.npz",
        )
    columns = []
    for i, axis in enumerate(pattern):
        sizes = [shape[i] for shape in seen] + (list(DEFAULT_BATCHES) if i == 0 else [])
        columns.append((axis,) * 3 if axis is not None else (min(sizes), statistics.median_low(sizes), max(sizes)))
    return tuple(tuple(column[point] for column in columns) for point in range(3))


def _checked(tensor: Tensor, keyword: str, entry: ShapeRange) -> tuple[tuple[int, ...], ...]:
    points = (entry.minimum, entry.optimum, entry.maximum)
    text = ",".join("x".join(map(str, point)) for point in points)
    if not all(_fits(point, tensor.shape) for point in points):
        raise SplitError(
            f"input {keyword}: range {text} does not fit its shape {_text(tensor.shape)}", "correct --shape"
        )
    if any(not low <= usual <= high for low, usual, high in zip(*points, strict=True)):
        raise SplitError(f"input {keyword}: range {text} is not in order", "give it as MIN,OPT,MAX")
    return points


def _fits(shape: Sequence[int], pattern: Shape | None) -> bool:
    return pattern is None or (
        len(shape) == len(pattern) and all(p is None or p == s for s, p in zip(shape, pattern, strict=True))
    )


def _text(shape: Shape | None) -> str:
    return "?" if shape is None else "(" + ", ".join("?" if axis is None else str(axis) for axis in shape) + ")"


def _resized(sample: Array, shape: tuple[int, ...]) -> Array:
    return np.resize(sample, shape) if shape else sample


def _draw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    import tensorflow as tf

    if dtype == "string":
        return rng.choice(np.array(WORDS, object), shape)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    kind = tf.as_dtype(dtype)
    if dtype == "uint8" and len(shape) == 4 and shape[3] in (1, 3, 4):
        return _images(rng, shape)
    if kind.is_integer:
        high = 256 if kind.size == 1 and kind.is_unsigned else 2
        return rng.integers(0, high, shape).astype(kind.as_numpy_dtype)
    return rng.random(shape).astype(kind.as_numpy_dtype)


def _images(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Images (N, H, W, C) in soft patches of colour. In noise a detector finds hundreds of things that are equally likely
    but for rounding, and which of them comes first is chance."""
    values = rng.random((shape[0], 5, 5, shape[3]))
    for axis in (1, 2):
        position = np.linspace(0, 4, shape[axis])
        before = np.minimum(position.astype(int), 3)
        share = (position - before).reshape([-1 if i == axis else 1 for i in range(4)])
        values = np.take(values, before, axis) * (1 - share) + np.take(values, before + 1, axis) * share
    return (values * 256).astype(np.uint8)
