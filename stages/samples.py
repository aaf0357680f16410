"""Inputs to run a model on: given by the user, or drawn from shapes and dtypes.

Samples that lie in files stay there, and are read one at a time whenever one is run on: there may be more than fit into
memory. What an iterator gives once is put into files, so that it can be run on again.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.artifacts import FrozenGraph
from stages.compare import Array
from stages.errors import SplitError
from stages.sizes import SizeRange, Sizes, fits, position, shape_text

SECOND_BATCH = 3
MOST_VERIFIED = 8
"""Of the user's samples no more are compared on: every region runs on each of them."""
_REMEDY = "write it with numpy.savez(path, input=array)"
Samples = str | Path | Iterable[str | Path | Mapping[str, Array]] | None
"""Where samples come from: see `read`."""
WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "")


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
    """What to compare on: samples of the user (the first few, and the first of each size), and two sizes besides where
    any axis is open (the first sample's rows, or random values where there is none)."""
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
    new_sizes = {tuple(array.shape for array in sample.values()): sample for sample in reversed(given)}
    chosen = {id(sample): sample for sample in (*reversed(new_sizes.values()), *given)}
    return [dict(sample) for sample in list(chosen.values())[:MOST_VERIFIED]] + drawn


@dataclass(frozen=True, slots=True)
class StoredSample(Mapping[str, Array]):
    """A checked sample in an `.npz` file, by tensor name; an array is read when it is asked for.

    Attributes:
        names: the array's name in the file, by tensor.
    """

    path: Path
    names: Mapping[str, str]

    def __getitem__(self, tensor: str) -> Array:
        """Raises SplitError where the file can't be read any more."""
        return _arrays(self.path, self.names[tensor])[self.names[tensor]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def read(frozen: FrozenGraph, source: Samples, *, spool: Path | None = None) -> list[Mapping[str, Array]]:
    """Samples by tensor name (none from None).

    Args:
        source: an `.npz` file with one array for each input, named by its keyword: one sample a file; a folder of such
            files; or an iterable (consumed once) of such files, or of dicts from keyword to array.
        spool: folder to make for what an iterator gives; None: it is kept in memory.

    Raises:
        SplitError: no such file, a missing or unknown name, a wrong dtype or shape, NaN.
        OSError: `spool` can't be written.
    """
    entries = [] if source is None else [source] if isinstance(source, (str, Path)) else source
    once = spool if isinstance(entries, Iterator) else None
    found: list[Mapping[str, Array]] = []
    for entry in entries:
        if isinstance(entry, StoredSample):
            found.append(entry)
        elif isinstance(entry, (str, Path)):
            found += [_stored(frozen, file, _arrays(file)) for file in _files(Path(entry))]
        else:
            sample = check(frozen, entry)
            found.append(sample if once is None else _put(frozen, sample, once / f"{len(found):06}.npz"))
    return found


def _stored(frozen: FrozenGraph, path: Path, arrays: Mapping[str, Array]) -> Mapping[str, Array]:
    """The sample in a file; in memory where it holds strings, which files have in another form."""
    sample = check(frozen, arrays)
    names = {frozen.inputs[position(frozen, name)].name: name for name in arrays}
    return StoredSample(path, names) if _plain(sample) else sample


def _put(frozen: FrozenGraph, sample: Mapping[str, Array], path: Path) -> Mapping[str, Array]:
    if not _plain(sample):
        return sample
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {f"input_{number}": sample[tensor.name] for number, tensor in enumerate(frozen.inputs)}
    np.savez(path, allow_pickle=False, **named)
    return StoredSample(path, {tensor.name: f"input_{number}" for number, tensor in enumerate(frozen.inputs)})


def _plain(sample: Mapping[str, Array]) -> bool:
    """Whether all arrays are of dtypes that numpy's files keep."""
    return all(array.dtype.kind in "biufc" for array in sample.values())


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files:
        raise SplitError(f"samples {path}: the folder holds no .npz file", _REMEDY)
    return files


def _arrays(path: Path, *names: str) -> dict[str, Array]:
    """The arrays of these names, or all."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise SplitError(f"samples {path}: hold one array without a name", _REMEDY)
        with loaded as archive:
            return {name: archive[name] for name in names or archive.files}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SplitError(f"samples {path}: can't be read: {error}", _REMEDY) from error


def check(frozen: FrozenGraph, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """One sample, keyed by signature keyword or tensor name, as a dict by tensor name; strings become object arrays.

    Raises:
        SplitError: a missing or unknown name, a wrong dtype or shape, NaN.
    """
    result: dict[str, Array] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        tensor = frozen.inputs[position(frozen, name)]
        if tensor.dtype == "string":
            array = array.astype(object)
        elif array.dtype.name != tensor.dtype:
            raise SplitError(f"sample {name}: dtype {array.dtype.name}", f"the model's input is {tensor.dtype}")
        if not fits(array.shape, tensor.shape):
            raise SplitError(f"sample {name}: shape {array.shape}", f"the model's input is {shape_text(tensor.shape)}")
        if array.dtype.kind in "fc" and np.isnan(array).any():
            raise SplitError(f"sample {name}: contains NaN", "give samples without NaN")
        result[tensor.name] = array
    missing = [n for n, t in zip(frozen.input_names, frozen.inputs, strict=True) if t.name not in result]
    if missing:
        raise SplitError(f"samples: no array for input {', '.join(missing)}", "add it to the samples")
    return result


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
