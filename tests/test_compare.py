"""Comparing results: what counts as equal, and how far apart the rest is."""

from __future__ import annotations

import numpy as np
import pytest

from stages.compare import Array, Difference, difference, worst

NAN, INF = np.nan, np.inf


def floats(*values: float, dtype: str = "float32") -> Array:
    return np.array(values, dtype)


def test_the_relative_error_is_the_largest_gap_over_the_largest_expected_value() -> None:
    found = difference(floats(1, -4, 0), floats(1, -4, 0.5))
    assert (found.max_abs, found.max_rel) == (0.5, 0.125)


def test_the_scale_is_that_of_the_expected_values_only() -> None:
    assert difference(floats(1), floats(3)).max_rel == 2
    assert difference(floats(3), floats(1)).max_rel == pytest.approx(2 / 3)


def test_what_should_be_zero_and_is_not_is_infinitely_wrong() -> None:
    assert difference(floats(0, 0), floats(0, 1e-30)).max_rel == INF
    assert difference(floats(0, 0), floats(0, -0.0)) == Difference(0, 0)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (floats(1, NAN), floats(1, NAN)),
        (floats(INF, -INF, 2), floats(INF, -INF, 2)),
        (np.array([1 + 2j, NAN + 0j]), np.array([1 + 2j, NAN + 0j])),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
        (np.zeros((), np.float32), np.zeros((), np.float32)),
        (np.array([b"a", b""], object), np.array([b"a", b""], object)),
        (np.array([True, False]), np.array([True, False])),
        (np.array([2**62 + 1]), np.array([2**62 + 1])),
    ],
)
def test_these_are_equal(expected: Array, actual: Array) -> None:
    assert difference(expected, actual) == Difference(0, 0)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (floats(1, NAN), floats(1, 1)),
        (floats(1, 1), floats(1, NAN)),
        (floats(NAN, 1), floats(1, NAN)),
        (floats(INF), floats(-INF)),
        (floats(INF), floats(NAN)),
        (floats(INF), floats(3e38)),
    ],
)
def test_nan_and_infinity_in_other_places_are_infinitely_wrong(expected: Array, actual: Array) -> None:
    found = difference(expected, actual)
    assert found.max_rel == INF
    assert found.why == "NaN or infinity in other places"


def test_the_finite_part_is_measured_beside_nan() -> None:
    assert difference(floats(NAN, 2), floats(NAN, 1)).max_rel == 0.5
    assert difference(floats(INF, 2), floats(INF, 1)).max_rel == 0.5


def test_another_shape_or_dtype_says_so() -> None:
    assert difference(floats(1, 2), floats(1)).why == "shape (1,) instead of (2,)"
    assert difference(floats(1), floats(1, dtype="float64")).why == "dtype float64 instead of float32"
    assert difference(np.zeros((0, 3)), np.zeros((3, 0))).max_rel == INF


def test_one_wrong_index_boolean_or_string_is_too_many() -> None:
    for expected, actual in (
        (np.array([1_000_000, 2]), np.array([1_000_000, 3])),
        (np.array([2**62]), np.array([2**62 + 1])),  # equal as float64
        (np.array([True, False]), np.array([True, True])),
        (np.array([b"a", b"b"], object), np.array([b"a", b"c"], object)),
    ):
        found = difference(expected, actual)
        assert found.max_rel == 1
        assert found.why == f"1 of {expected.size} differ"


def test_pixels_may_differ_by_rounding() -> None:
    assert difference(np.array([255, 0], np.uint8), np.array([254, 0], np.uint8)).max_rel == pytest.approx(1 / 255)


def test_half_precision_is_measured_without_overflow() -> None:
    expected, actual = floats(60000, dtype="float16"), floats(-60000, dtype="float16")
    assert difference(expected, actual).max_abs == pytest.approx(120000, rel=1e-3)


def test_the_worst_is_the_largest_relative_error() -> None:
    small, large = Difference(5.0, 0.1), Difference(1.0, 0.2, "why")
    assert worst([small, large]) is large
    assert worst([]) == Difference(0, 0)
