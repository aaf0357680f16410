"""Which layers may compute in which precision: a search that only asks for the error of an assignment.

Every precision is tried whole first. Where that breaks the limit, bisection finds the first layer that does, which is
kept higher, and goes on behind it. What is returned was asked for and found within the limit, whatever the errors are
like; that few questions are enough only holds where lowering one more layer hardly ever makes the error smaller.

Layers are tried the heaviest first: where every layer adds a little to the error, those that gain most spend it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Assignment = Mapping[str, str]
"""A precision for each layer."""
ELEMENT_BYTES = {"fp8": 1, "int8": 1, "bf16": 2, "fp16": 2, "fp32": 4}
"""What an assignment is taken to cost, for each unit of work: an order, not a measurement. Measured times of engines, where
there is a GPU to measure on, could be passed to `search` in its place."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Ops that get one precision together, and how much work they are (in any unit)."""

    name: str
    work: float


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A layer that could not have `refused`: with it the error would have been `error`; None where the evaluations ran out
    before that was known."""

    name: str
    refused: str
    error: float | None


@dataclass(frozen=True, slots=True)
class Found:
    """A precision for each layer, its error (None: everything is in the highest, and nothing was asked), the layers that
    are not in the lowest precision used, with the last reason, and how many assignments were evaluated."""

    precisions: dict[str, str]
    error: float | None
    kept: tuple[KeptLayer, ...]
    evaluations: int


def most_evaluations(layers: int) -> int:
    """How many assignments are evaluated at most to lower so many layers to one precision."""
    return 8 + 5 * math.ceil(math.log2(layers + 1))


def by_element_size(layers: Sequence[Layer], assignment: Assignment) -> float:
    """The estimated cost of an assignment."""
    return sum(layer.work * ELEMENT_BYTES[assignment[layer.name]] for layer in layers)


def search(
    layers: Sequence[Layer],
    ladder: Sequence[str],
    evaluate: Callable[[Assignment], float],
    limit: float,
    *,
    cost: Callable[[Sequence[Layer], Assignment], float] = by_element_size,
) -> Found:
    """The cheapest assignment found whose error is within the limit.

    From each precision of the ladder on, as many layers as fit get that one, then as many of the others as fit the next,
    and so on; what is left has the last.

    Args:
        layers: names differ.
        ladder: precisions, the fastest first; an assignment of the last to every layer is taken to be within the limit.
        evaluate: the error of an assignment; infinite where it can't be had.
        limit: largest error.
        cost: what is to become small.
    """
    highest = dict.fromkeys((layer.name for layer in layers), ladder[-1])
    trials = _Trials(evaluate, limit)
    heaviest = [layer.name for layer in sorted(layers, key=lambda layer: -layer.work)]
    best, best_kept = highest, tuple[KeptLayer, ...]()
    for start, lowest in enumerate(ladder[:-1]):
        if start and cost(layers, dict.fromkeys(highest, lowest)) >= cost(layers, best):
            break
        assignment, reasons = highest, dict[str, KeptLayer]()
        rest = heaviest
        for precision in ladder[start:-1]:
            assignment, kept = _lower(trials, assignment, rest, precision)
            reasons |= {layer.name: layer for layer in kept}
            rest = [layer.name for layer in kept]
        if cost(layers, assignment) < cost(layers, best):
            used = next(precision for precision in ladder if precision in assignment.values())
            best = assignment
            best_kept = tuple(reasons[name] for name in highest if assignment[name] != used)
    return Found(dict(best), trials.known.get(_key(best)), best_kept, trials.count)


class _Spent(Exception):
    """No more evaluations are left."""


@dataclass(slots=True)
class _Trials:
    """Evaluates each assignment once, and counts."""

    evaluate: Callable[[Assignment], float]
    limit: float
    known: dict[frozenset[tuple[str, str]], float] = field(default_factory=dict)
    left: int = 0

    @property
    def count(self) -> int:
        return len(self.known)

    def error(self, assignment: Assignment) -> float:
        key = _key(assignment)
        if key not in self.known:
            if not self.left:
                raise _Spent
            self.left -= 1
            self.known[key] = self.evaluate(assignment)
        return self.known[key]

    def fits(self, assignment: Assignment) -> bool:
        return self.error(assignment) <= self.limit


def _key(assignment: Assignment) -> frozenset[tuple[str, str]]:
    return frozenset(assignment.items())


def _lower(
    trials: _Trials, assignment: dict[str, str], names: Sequence[str], precision: str
) -> tuple[dict[str, str], list[KeptLayer]]:
    """Give a precision to as many of the named layers as fit; the others keep what they have."""
    trials.left = most_evaluations(len(names))
    kept: list[KeptLayer] = []
    rest = list(names)
    while rest:
        fitting = _Prefix(assignment, rest, precision)
        try:
            _extend(trials, fitting, gallop=bool(kept))
        except _Spent:
            assignment = fitting.of(fitting.fits)
            return assignment, kept + [KeptLayer(name, precision, None) for name in rest[fitting.fits :]]
        assignment = fitting.of(fitting.fits)
        if fitting.fits < len(rest):
            kept.append(KeptLayer(rest[fitting.fits], precision, trials.error(fitting.of(fitting.fits + 1))))
        rest = rest[fitting.fits + 1 :]
    return assignment, kept


@dataclass(slots=True)
class _Prefix:
    """The first so many of some layers in a precision; `fits` of them are known to be within the limit."""

    base: dict[str, str]
    names: Sequence[str]
    precision: str
    fits: int = 0

    def of(self, count: int) -> dict[str, str]:
        return self.base | dict.fromkeys(self.names[:count], self.precision)


def _extend(trials: _Trials, prefix: _Prefix, gallop: bool) -> None:
    """Set `fits`, so that one more breaks the limit.

    Args:
        gallop: look close by first: behind one layer that was refused the next is soon refused too, where it is their sum
            that counts.
    """
    broken = len(prefix.names)
    if trials.fits(prefix.of(broken)):
        prefix.fits = broken
        return
    step = 1
    while broken - prefix.fits > 1:
        middle = (prefix.fits + broken) // 2
        tried = min(prefix.fits + step, middle) if gallop else middle
        if trials.fits(prefix.of(tried)):
            prefix.fits = tried
            step *= 2
        else:
            broken, gallop = tried, False
