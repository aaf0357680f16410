"""How far two results are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.generic]

TOLERANCES = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 2e-3, "bf16": 2e-2, "int8": 0.3, "fp8": 0.3}
"""Passing relative error by precision, where the user states none. In 8 bits it says that nothing is broken; how good the
answers are is a question for the model's own measure, on its own data."""


@dataclass(frozen=True, slots=True)
class Difference:
    """`max_abs` is max|a−b|; `max_rel` is max|a−b| / max|a| (of the expected values), infinite where shape, dtype or
    the places of NaN and infinity differ; `why` says so then."""

    max_abs: float
    max_rel: float
    why: str = ""


def difference(expected: Array, actual: Array) -> Difference:
    """Compare one tensor with TensorFlow's. NaN equals NaN, and an infinity its like; strings, booleans and indices
    (integers of more than 8 bits, which are no pixels) must be equal; an empty tensor equals one of its shape."""
    if expected.shape != actual.shape:
        return Difference(np.inf, np.inf, f"shape {actual.shape} instead of {expected.shape}")
    if expected.dtype != actual.dtype:
        return Difference(np.inf, np.inf, f"dtype {actual.dtype} instead of {expected.dtype}")
    if expected.size == 0:
        return Difference(0.0, 0.0)
    index = expected.dtype.kind in "iu" and expected.itemsize > 1
    if index or expected.dtype == bool or expected.dtype.kind in "OSU":
        wrong = int(np.count_nonzero(expected != actual))
        return Difference(float(wrong > 0), float(wrong > 0), f"{wrong} of {expected.size} differ" if wrong else "")
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, b = expected.astype(wide), actual.astype(wide)
    odd_a, odd_b = ~np.isfinite(a), ~np.isfinite(b)
    if not np.array_equal(odd_a, odd_b) or not np.array_equal(a[odd_a], b[odd_a], equal_nan=True):
        return Difference(np.inf, np.inf, "NaN or infinity in other places")
    with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity is nothing to warn a user of
        gap = float(np.max(np.abs(a - b), where=~odd_a, initial=0.0))
    scale = float(np.max(np.abs(a), where=~odd_a, initial=0.0))
    if gap == 0:
        return Difference(0.0, 0.0)
    return Difference(gap, gap / scale if scale else np.inf)


def worst(differences: Sequence[Difference]) -> Difference:
    """The largest of several differences; no difference if there are none."""
    return max(differences, key=lambda d: (d.max_rel, d.max_abs), default=Difference(0.0, 0.0))
