"""What the single-op models are fed: by op, or else by the name and dtype of an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

BATCHES = (3, 1, 0)
"""Sizes of open axes: the usual one, one, none."""


@dataclass(frozen=True, slots=True)
class Feed:
    """An input of the model; None in `shape` is an open axis. Values lie in [low, high], where given; `ranks` makes each
    row a permutation, `ascending` sorts them."""

    shape: tuple[int | None, ...]
    low: float | None = None
    high: float | None = None
    permutation: bool = False
    ascending: bool = False
    definite: bool = False
    """Symmetric positive definite matrices."""

    def values(self, batch: int, dtype: np.dtype[np.generic], rng: np.random.Generator) -> np.ndarray:
        shape = tuple(batch if size is None else size for size in self.shape)
        if self.permutation:
            values = np.argsort(rng.random(shape), -1)
        elif dtype.kind == "b":
            values = rng.random(shape) < 0.5
        elif dtype.kind in "iu":
            low = self.low if self.low is not None else (0 if dtype.kind == "u" else -9)
            values = rng.integers(int(low), int(self.high if self.high is not None else 9) + 1, shape)
        elif self.low is not None or self.high is not None:
            values = rng.uniform(self.low or 0.0, 1.0 if self.high is None else self.high, shape)
        else:
            values = rng.standard_normal(shape) * 2
        if self.ascending:
            values = np.sort(values, -1)
        if self.definite:
            values = values @ np.swapaxes(values, -1, -2) + 2 * np.eye(shape[-1])
        return np.asarray(values).astype(dtype)

    def edges(self, batch: int, dtype: np.dtype[np.generic], rng: np.random.Generator) -> np.ndarray:
        """The same with odd values at every third place, where the values are free."""
        values = self.values(batch, dtype, rng)
        free = self.low is None and self.high is None and not (self.permutation or self.ascending or self.definite)
        if not free or values.size == 0 or dtype.kind == "b":
            return values
        if dtype.kind in "iu":
            info = np.iinfo(dtype)
            odd = np.array([info.min, info.max, 0, info.min + 1, info.max - 1], dtype)
        else:
            largest = 6e4 if dtype.itemsize == 2 else 1e30
            odd = np.array([np.nan, np.inf, -np.inf, -0.0, largest, 1e-30, 0.5, 1.5, 2.5], dtype)
        flat = values.reshape(-1)
        places = rng.permutation(flat.size)[: -(-flat.size // 3)]
        flat[places] = odd[(np.arange(places.size) + rng.integers(odd.size)) % odd.size]
        return values


@dataclass(frozen=True, slots=True)
class Fixed:
    """A constant of the model."""

    value: object


Argument = Feed | Fixed | Sequence["Feed | Fixed"]


@dataclass(frozen=True, slots=True)
class Case:
    """One op's inputs by argument, attributes, and dtypes by type attribute; what is missing has a default."""

    inputs: Mapping[str, Argument] = field(default_factory=dict)
    attrs: Mapping[str, object] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    outputs: int | None = None
    """How many of the op's results are looked at; all by default."""


def d(*shape: int | None, **limits: object) -> Feed:
    return Feed(shape, **limits)  # type: ignore[arg-type]


def k(value: object) -> Fixed:
    return Fixed(value)


BY_NAME: dict[str, Argument] = {
    **dict.fromkeys(("axis", "dimension", "reduction_indices", "split_dim", "concat_dim", "dim"), k(1)),
    "paddings": k([[0, 0], [1, 2]]),
    "perm": k([1, 0]),
    "multiples": k([1, 3]),
    "diagonal": d(None, 4),
    "num_segments": k(5),
    "keep_prob": k(0.5),
}
"""Where an op has no case of its own; other arguments are (open, 4)."""
