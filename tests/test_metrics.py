"""Error metrics: what each says of two arrays, and of what it says nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.errors import VerifyError
from stages.metrics import METRICS, check_metric, default_limit, output_error

Arrays = list[np.ndarray]


def error(metric: object, expected: object, actual: object) -> float:
    """Of one output, on one sample each for arrays in a list."""
    pairs = [[np.asarray(a) for a in (side if isinstance(side, list) else [side])] for side in (expected, actual)]
    return output_error(metric, "out", *pairs)  # type: ignore[arg-type]


SCORES = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]], np.float32)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_arrays_have_no_error(metric: str) -> None:
    assert error(metric, SCORES, SCORES.copy()) == pytest.approx(0, abs=1e-12)
    assert error(metric, np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32)) == 0


@pytest.mark.parametrize("metric", [*METRICS, lambda a, b: 0.0])
def test_other_shapes_dtypes_and_places_of_nan_are_infinitely_far(metric: object) -> None:
    broken = SCORES.copy()
    broken[0, 0] = np.nan
    assert math.isinf(error(metric, SCORES, broken))
    assert math.isinf(error(metric, SCORES, SCORES[:2]))
    assert math.isinf(error(metric, SCORES, SCORES.astype(np.float16)))


def test_top1_is_the_share_of_rows_over_all_samples() -> None:
    changed = SCORES[:, [1, 0, 2]]  # changes the answer of all rows but the third
    assert error("top1", SCORES, changed) == 0.75
    assert error("top1", [SCORES, SCORES], [SCORES, changed]) == 0.375
    assert error("top1", SCORES, SCORES * 0.5) == 0
    assert error("top1", np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert error("top1", np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)) == 0


@pytest.mark.parametrize("shape", [(4, 1), ()])
def test_top1_refuses_what_has_no_classes(shape: tuple[int, ...]) -> None:
    with pytest.raises(VerifyError, match="no classes along the last axis") as caught:
        error("top1", np.ones(shape, np.float32), np.ones(shape, np.float32))
    assert "relative" in caught.value.remedy


def test_cosine_is_that_of_the_worst_row_whatever_its_length() -> None:
    rows = np.array([[1.0, 0.0], [1000.0, 0.0]], np.float32)
    turned = np.array([[3.0, 0.0], [0.0, 5.0]], np.float32)
    assert error("cosine", rows, rows * 3) == 0
    assert error("cosine", rows, turned) == 1
    assert error("cosine", rows, np.zeros_like(rows)) == 1
    assert error("cosine", np.array([3e38, 3e38], np.float32), np.array([3e38, 0], np.float32)) == pytest.approx(
        1 - 2**-0.5
    )
    assert error("cosine", np.array([1, 2]), np.array([1, 3])) == 1, "indices are equal or not"
    assert error("cosine", np.array([1 + 1j]), np.array([-1 - 1j])) == pytest.approx(2)


def test_a_function_is_called_for_each_sample_and_the_largest_counts() -> None:
    def gap(expected: np.ndarray, actual: np.ndarray) -> float:
        return float(np.abs(expected - actual).sum())

    ones = np.ones(3, np.float32)
    assert error(gap, [ones, ones, ones], [ones, ones * 2, ones]) == 3


@pytest.mark.parametrize(
    "bad", [lambda a, b: math.nan, lambda a, b: -1.0, lambda a, b: None, lambda a, b: 1 / 0, lambda a: 0.0]
)
def test_a_function_that_gives_no_error_is_named(bad: object) -> None:
    with pytest.raises(VerifyError, match="error metric <lambda> of output out") as caught:
        error(bad, SCORES, SCORES)
    assert caught.value.remedy


def test_unknown_metrics_and_missing_limits_are_refused() -> None:
    for unknown in ("rmse", 3, None):
        with pytest.raises(VerifyError, match="is unknown"):
            check_metric(unknown)  # type: ignore[arg-type]
    with pytest.raises(VerifyError, match="no limit of its own"):
        default_limit(lambda a, b: 0.0, "auto")
    assert default_limit("relative", "fp16") == 2e-3
