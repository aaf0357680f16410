"""How far a model's outputs are from TensorFlow's, in one figure that a limit can be set for: 0 is equal, more is worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from stages.compare import TOLERANCES, Array, difference
from stages.errors import VerifyError

Metric: TypeAlias = "str | Callable[[Array, Array], float]"
"""One of `METRICS`, or a function of one output, (expected, actual), that returns its error."""
METRICS = ("relative", "cosine", "top1")
"""`relative`: max|a−b| / max|a|, the largest over the samples. `cosine`: 1 − cosine of the angle between expected and actual
(each row of the first axis by itself), the largest over rows and samples. `top1`: the share of rows (all axes but the last)
whose largest element is another one, over all samples together; of integers, the share of elements that differ."""
LIMITS = {"cosine": 1e-3, "top1": 1e-2}
"""Passing error where the user states none; of `relative` it depends on the precision (`compare.TOLERANCES`)."""


def default_limit(metric: Metric, precision: str) -> float:
    """The largest error that passes where the user states none.

    Raises:
        VerifyError: the metric is a function of the user's.
    """
    if metric == "relative":
        return TOLERANCES[precision]
    if not isinstance(metric, str):
        raise VerifyError(f"error metric {metric_name(metric)}: has no limit of its own", "give max_error")
    return LIMITS[metric]


def check_metric(metric: Metric) -> None:
    """Raise a VerifyError where there is no such metric."""
    if (isinstance(metric, str) and metric not in METRICS) or not (isinstance(metric, str) or callable(metric)):
        raise VerifyError(
            f"error metric {metric!r} is unknown", f"choose {', '.join(METRICS)}, or give a function from Python"
        )


def metric_name(metric: Metric) -> str:
    """For messages and reports; of a function its own name."""
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", type(metric).__name__))


def output_error(metric: Metric, name: str, expected: Sequence[Array], actual: Sequence[Array]) -> float:
    """The error of one output over all samples; infinite where shape, dtype or the places of NaN and infinity differ.

    Args:
        metric: a function is called once for each sample, and the largest result counts.
        name: of the output, for messages.
        expected, actual: TensorFlow's values and those to be judged, one array for each sample.

    Raises:
        VerifyError: the metric says nothing about such an output, or a user's function raises or returns no number.
    """
    pairs = list(zip(expected, actual, strict=True))
    differences = [difference(a, b) for a, b in pairs]
    if any(math.isinf(d.max_rel) and d.why for d in differences):
        return math.inf
    if metric == "relative":
        return max((d.max_rel for d in differences), default=0.0)
    if metric == "top1":
        wrong = [_top1(name, a, b) for a, b in pairs]
        count = sum(array.size for array in wrong)
        return sum(int(np.count_nonzero(array)) for array in wrong) / count if count else 0.0
    if metric == "cosine":
        return max(
            (
                _angle(a, b) if a.dtype.kind in "fcV" else d.max_rel
                for (a, b), d in zip(pairs, differences, strict=True)
            ),
            default=0.0,
        )
    return max((_own(metric, name, a, b) for a, b in pairs), default=0.0)


def _top1(name: str, expected: Array, actual: Array) -> Array:
    """Which rows differ in their largest element."""
    if expected.dtype.kind in "iubOSU":
        return np.asarray(expected != actual)
    if expected.dtype.kind == "c" or expected.ndim == 0 or expected.shape[-1] == 1:
        raise VerifyError(
            f"output {name}: shape {expected.shape} of {expected.dtype} has no classes along the last axis, which top1 needs",
            "--error-metric relative or cosine, or a function of your own from Python",
        )
    if expected.size == 0:
        return np.zeros(0, bool)
    return np.asarray(expected.argmax(-1) != actual.argmax(-1))


def _angle(expected: Array, actual: Array) -> float:
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    rows = len(expected) if expected.ndim > 1 else 1
    a, b = (np.nan_to_num(array.astype(wide)).reshape(rows, -1) for array in (expected, actual))
    # Scaled first: squares of large values would overflow.
    a, b = (array / np.maximum(np.abs(array).max(-1, keepdims=True, initial=0), 1e-300) for array in (a, b))
    lengths = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    both = (lengths[0] > 0) & (lengths[1] > 0)
    cosine = np.where(lengths[0] == lengths[1], 1.0, 0.0)  # where both are zero they are equal
    np.divide(np.sum(a * b.conj(), -1).real, lengths[0] * lengths[1], out=cosine, where=both)
    return float(max(0.0, 1 - np.min(cosine, initial=1.0)))


def _own(metric: Metric, name: str, expected: Array, actual: Array) -> float:
    assert not isinstance(metric, str)
    subject = f"error metric {metric_name(metric)} of output {name}"
    try:
        value = float(metric(expected, actual))
    except Exception as error:
        raise VerifyError(f"{subject}: {type(error).__name__}: {error}", "correct the function") from error
    if math.isnan(value) or value < 0:
        raise VerifyError(
            f"{subject}: returned {value}", "return 0 for equal arrays, and more the further apart they are"
        )
    return value
