"""Shape profiles from inputs, as TF-TRT's profile strategies make them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stages.artifacts import ShapeRange
from stages.compare import Array
from stages.errors import ArgumentError

if TYPE_CHECKING:
    import tensorflow as tf

PROFILE_STRATEGY_RANGE = "Range"
PROFILE_STRATEGY_OPTIMAL = "Optimal"
PROFILE_STRATEGY_RANGE_OPTIMAL = "Range+Optimal"
PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE = "ImplicitBatchModeCompatible"

Shapes = tuple[tuple[int, ...], ...]
"""The shape of each input, in the order of their names."""


def supported_profile_strategies() -> list[str]:
    return [
        PROFILE_STRATEGY_RANGE,
        PROFILE_STRATEGY_OPTIMAL,
        PROFILE_STRATEGY_RANGE_OPTIMAL,
        PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE,
    ]


def strategy_named(name: str | None) -> str:
    """A strategy's proper spelling; None is Range.

    Raises:
        ArgumentError: there is none of that name.
    """
    known = {strategy.lower(): strategy for strategy in supported_profile_strategies()}
    if name is None:
        return PROFILE_STRATEGY_RANGE
    if name.lower() not in known:
        raise ArgumentError(f"profile strategy {name!r} is unknown", f"one of {', '.join(known.values())}")
    return known[name.lower()]


@dataclass(frozen=True, slots=True)
class Seen:
    """What an input function yielded: every different combination of shapes, and the first inputs by name."""

    shapes: tuple[Shapes, ...]
    first: Mapping[str, Array]


def see(specs: Mapping[str, tf.TensorSpec], input_fn: Callable[[], Iterable[object]]) -> Seen:
    """Run through an input function that yields arrays, lists or tuples of them (in the order of the names) or dicts.

    Raises:
        ArgumentError: it yields nothing, inputs that the signature does not have, or an input of different ranks.
    """
    shapes: dict[Shapes, None] = {}
    first: Mapping[str, Array] = {}
    for item in input_fn():
        arrays = _arrays(specs, item)
        first = first or arrays
        shapes[tuple(arrays[name].shape for name in specs)] = None
    if not shapes:
        raise ArgumentError("input_fn yields nothing", "yield inputs of each size that the model will serve")
    if len({tuple(map(len, combination)) for combination in shapes}) > 1:
        raise ArgumentError("input_fn yields an input with different numbers of axes", "yield one number of axes")
    return Seen(tuple(shapes), first)


def inputs(specs: Mapping[str, tf.TensorSpec], input_fn: Callable[[], Iterable[object]]) -> Iterator[dict[str, Array]]:
    """What an input function yields, by name, each when it is asked for; forms as of `see`.

    Raises:
        ArgumentError: it yields nothing, or (when that is asked for) inputs that the signature does not have.
    """
    arrays = (_arrays(specs, item) for item in input_fn())
    first = next(arrays, None)
    if first is None:
        raise ArgumentError("calibration_input_fn yields nothing", "yield some hundred real inputs")
    return itertools.chain([first], arrays)


def _arrays(specs: Mapping[str, tf.TensorSpec], item: object) -> dict[str, Array]:
    import tensorflow as tf

    if isinstance(item, Mapping):
        values = dict(item)
    else:
        parts = list(item) if isinstance(item, (list, tuple)) else [item]
        if len(parts) != len(specs):
            raise ArgumentError(
                f"input_fn yields {len(parts)} inputs, the signature has {len(specs)}", f"yield {', '.join(specs)}"
            )
        values = dict(zip(specs, parts, strict=True))
    if set(values) != set(specs):
        raise ArgumentError(f"input_fn yields {', '.join(map(str, values))}", f"yield {', '.join(specs)}")
    try:
        return {name: np.asarray(tf.convert_to_tensor(values[name], spec.dtype)) for name, spec in specs.items()}
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"input_fn yields what is no tensor: {error}", "yield numpy arrays or tensors") from error


def profiles(specs: Mapping[str, tf.TensorSpec], seen: Sequence[Shapes], strategy: str) -> tuple[ShapeRange, ...]:
    """The profiles of a strategy, each a range for every input. An engine takes the first that fits.

    Range: one from the smallest to the largest size of each axis, tuned for the largest. Optimal: one for each
    combination of shapes, for exactly these. Range+Optimal: both. ImplicitBatchModeCompatible: one for each combination,
    whose open first axis may also be smaller, down to 1.
    """
    points: list[tuple[Shapes, Shapes]] = []
    if strategy in (PROFILE_STRATEGY_OPTIMAL, PROFILE_STRATEGY_RANGE_OPTIMAL):
        points += [(shapes, shapes) for shapes in seen]
    if strategy in (PROFILE_STRATEGY_RANGE, PROFILE_STRATEGY_RANGE_OPTIMAL):
        columns = list(zip(*seen, strict=True))
        points.append((tuple(_extreme(min, c) for c in columns), tuple(_extreme(max, c) for c in columns)))
    if strategy == PROFILE_STRATEGY_IMPLICIT_BATCH_MODE_COMPATIBLE:
        points += [(_one_row(specs, shapes), shapes) for shapes in seen]
    return tuple(
        ShapeRange(name, low[i], high[i], high[i])
        for low, high in dict.fromkeys(points)
        for i, name in enumerate(specs)
    )


def _extreme(choose: Callable[[Iterable[int]], int], shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(choose(sizes) for sizes in zip(*shapes, strict=True))


def _one_row(specs: Mapping[str, tf.TensorSpec], shapes: Shapes) -> Shapes:
    return tuple(
        (min(1, shape[0]), *shape[1:]) if shape and spec.shape.rank and spec.shape[0] is None else shape
        for shape, spec in zip(shapes, specs.values(), strict=True)
    )


def open_beyond_first(shape: tf.TensorShape) -> bool:
    """Whether sizes besides that of the first axis are open, so that no profile can be made without being told."""
    return shape.rank is None or None in shape.as_list()[1:]
