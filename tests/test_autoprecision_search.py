"""The search for the fastest precision of each layer: what it promises whatever the errors are, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from stages.autoprecision.search import Assignment, Layer, by_element_size, most_evaluations, search

LADDER = ("int8", "fp16", "fp32")


def layers(count: int) -> list[Layer]:
    return [Layer(f"layer_{i}", 1.0) for i in range(count)]


class Asked:
    """An evaluation that remembers what it was asked."""

    def __init__(self, error: Callable[[Assignment], float]) -> None:
        self.error = error
        self.answers: list[tuple[dict[str, str], float]] = []

    def __call__(self, assignment: Assignment) -> float:
        self.answers.append((dict(assignment), self.error(assignment)))
        return self.answers[-1][1]


def summed(errors: dict[tuple[str, str], float]) -> Asked:
    """Errors of layers in a precision add up; what is not named has none."""
    return Asked(lambda assignment: sum(errors.get(item, 0.0) for item in assignment.items()))


@given(st.integers(1, 40), st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_found_was_asked_for_and_is_within_the_limit_whatever_the_errors(
    count: int, data: st.DataObject
) -> None:
    chance = data.draw(st.randoms(use_true_random=False))
    asked = Asked(lambda _: chance.choice([0.0, 0.5, 1.0, 2.0, math.inf, math.nan]))
    found = search(layers(count), LADDER, asked, 1.0)
    assert set(found.precisions) == {f"layer_{i}" for i in range(count)}
    if set(found.precisions.values()) == {"fp32"}:
        assert found.error is None
    else:
        assert (found.precisions, found.error) in asked.answers
        assert found.error is not None
        assert found.error <= 1.0
    assert found.evaluations == len(asked.answers)
    assert len(asked.answers) <= 3 * most_evaluations(count)
    lowest = next(p for p in LADDER if p in found.precisions.values())
    assert {layer.name for layer in found.kept} == {
        n for n, p in found.precisions.items() if p != lowest
    } or lowest == "fp32"


@given(st.integers(1, 60), st.sampled_from(["int8", "fp16"]))
def test_nothing_is_kept_higher_where_everything_fits(count: int, lowest: str) -> None:
    asked = summed({})
    found = search(layers(count), LADDER[LADDER.index(lowest) :], asked, 0.1)
    assert found.precisions == {f"layer_{i}": lowest for i in range(count)}
    assert found.kept == ()
    assert found.evaluations == len(asked.answers) == 1


@given(st.integers(2, 2000), st.data())
@settings(max_examples=60, deadline=None)
def test_one_bad_layer_is_found_in_logarithmically_many_evaluations(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.integers(0, count - 1))
    asked = summed({(f"layer_{bad}", "fp16"): math.inf})
    found = search(layers(count), ("fp16", "fp32"), asked, 1e-3)
    assert [(layer.name, layer.refused, layer.error) for layer in found.kept] == [(f"layer_{bad}", "fp16", math.inf)]
    assert found.precisions == {f"layer_{i}": "fp32" if i == bad else "fp16" for i in range(count)}
    assert len(asked.answers) <= math.ceil(math.log2(count)) + 2


@given(st.integers(8, 200), st.sets(st.integers(0, 7), min_size=2, max_size=3))
@settings(max_examples=40, deadline=None)
def test_several_bad_layers_are_found_and_no_others_are_kept(count: int, bad: set[int]) -> None:
    places = {f"layer_{i * count // 8}" for i in bad}
    found = search(layers(count), ("fp16", "fp32"), summed(dict.fromkeys(((n, "fp16") for n in places), 1.0)), 0.5)
    assert {layer.name for layer in found.kept} == places
    assert {layer.error for layer in found.kept} == {1.0}


def test_where_evaluations_run_out_the_rest_is_kept_and_says_so() -> None:
    asked = summed(dict.fromkeys(((f"layer_{i}", "fp16") for i in range(0, 100, 2)), 1.0))
    found = search(layers(100), ("fp16", "fp32"), asked, 0.5)
    assert len(asked.answers) == most_evaluations(100)
    assert 0 < len(found.kept) < 100
    assert found.error == 0.0
    assert found.kept[-1].error is None
    assert {layer.error for layer in found.kept} == {1.0, None}


def test_a_layer_that_int8_breaks_is_tried_in_fp16_before_fp32() -> None:
    errors = {("layer_1", "int8"): 1.0, ("layer_2", "int8"): 1.0, ("layer_2", "fp16"): 1.0}
    found = search(layers(8), LADDER, summed(errors), 0.5)
    assert found.precisions == dict.fromkeys((f"layer_{i}" for i in range(8)), "int8") | {
        "layer_1": "fp16",
        "layer_2": "fp32",
    }
    assert [(layer.name, layer.refused) for layer in found.kept] == [("layer_1", "int8"), ("layer_2", "fp16")]


def test_the_heaviest_layers_spend_what_error_there_is() -> None:
    unequal = [Layer("light", 1), Layer("heavy", 100), Layer("middle", 10)]
    asked = summed(dict.fromkeys(((layer.name, "fp16") for layer in unequal), 0.4))
    found = search(unequal, ("fp16", "fp32"), asked, 0.9)
    assert found.precisions == {"light": "fp32", "heavy": "fp16", "middle": "fp16"}
    assert found.error == pytest.approx(0.8)
    assert found.kept[0].error == pytest.approx(1.2)


def test_few_layers_in_int8_do_not_win_over_all_in_fp16() -> None:
    errors = dict.fromkeys(((f"layer_{i}", "int8") for i in range(7)), 1.0)
    errors |= {("layer_7", "int8"): 0.9} | dict.fromkeys(((f"layer_{i}", "fp16") for i in range(8)), 0.1)
    found = search(layers(8), LADDER, summed(errors), 0.95)
    assert found.precisions == dict.fromkeys((f"layer_{i}" for i in range(8)), "fp16")
    assert found.kept == ()


def test_what_an_assignment_costs_can_be_given() -> None:
    def slow_int8(given: object, assignment: Assignment) -> float:
        return sum({"int8": 3.0, "fp16": 1.0, "fp32": 2.0}[precision] for precision in assignment.values())

    found = search(layers(3), LADDER, summed({}), 0.5, cost=slow_int8)
    assert set(found.precisions.values()) == {"fp16"}
    assert by_element_size(layers(3), found.precisions) == 6
