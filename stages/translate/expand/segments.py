"""Scatter and segment ops: what several rows add to one place.

ONNX's ScatterND overwrites where an index comes twice (its reductions TensorRT refuses), and TensorRT has nothing for
segments. So each place of the result looks at all rows and takes those that are its own: exact for every dtype, infinity
and NaN included, but places × rows × width values are looked at, which bounds it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from stages.translate.expand.call import LEAVE, Call, Result, Rule, Untranslatable

if TYPE_CHECKING:
    import tensorflow as tf

_MOST = 1 << 24
"""Most values that one op may look at; an open axis counts as `_OPEN`."""
_OPEN = 1024


def _product(sizes: list[int | None]) -> int:
    return math.prod(_OPEN if size is None else size for size in sizes)


def _bounded(call: Call, places: int, rows: int, width: int) -> None:
    if places * rows * width > _MOST:
        raise Untranslatable(f"{call.op.type} of {rows} rows into {places} places of {width} values is too large")


def _flat(x: tf.Tensor, axes: int) -> tf.Tensor:
    """The first `axes` axes as one, and the others as another: (rows, width)."""
    import tensorflow as tf

    sizes = x.shape.as_list()
    width = sizes[axes:]
    if None in width:
        raise Untranslatable("rows of open size can't be added up by index")
    rows = sizes[:axes]
    return tf.reshape(x, [-1 if None in rows else math.prod(rows), math.prod(width)])


def _gathered(kind: str, values: tf.Tensor, places: tf.Tensor, count: int, *, infinite: bool = False) -> tf.Tensor:
    """(rows, width) values and the place of each row → (count, width); a place without rows gets the neutral value, which
    for a largest or smallest one is the dtype's, or infinity."""
    import tensorflow as tf

    lowest, highest = values.dtype.min, values.dtype.max
    if infinite and values.dtype.is_floating:
        lowest, highest = -np.inf, np.inf
    neutral = {"Sum": 0, "Prod": 1, "Max": lowest, "Min": highest}[kind]
    reduce = {"Sum": tf.reduce_sum, "Prod": tf.reduce_prod, "Max": tf.reduce_max, "Min": tf.reduce_min}[kind]
    own = tf.equal(tf.constant(np.arange(count)[:, np.newaxis], places.dtype), places)[..., tf.newaxis]
    return reduce(tf.where(own, values, tf.constant(neutral, values.dtype)), 1)


def _occupied(places: tf.Tensor, count: int, dtype: tf.DType) -> tf.Tensor:
    """How many rows each place has, (count, 1)."""
    import tensorflow as tf

    own = tf.equal(tf.constant(np.arange(count)[:, np.newaxis], places.dtype), places)
    return tf.reduce_sum(tf.cast(own, dtype), 1, keepdims=True)


def _scatter_nd(call: Call) -> Result:
    import tensorflow as tf

    indices, updates = call.real(0), call.real(1)
    if not (updates.dtype.is_floating or updates.dtype.is_integer):
        raise Untranslatable(f"ScatterNd of {updates.dtype.name} has no translation")
    known = call.constant(0)
    if known is not None:
        rows = known.reshape(-1, known.shape[-1])
        if len(np.unique(rows, axis=0)) == len(rows):
            return LEAVE
    shape = [int(size) for size in call.known(2, "the shape")]
    depth = call.size(0, -1)
    batch = indices.shape.rank - 1
    outer, inner = shape[:depth], shape[depth:]
    _bounded(call, math.prod(outer), _product(indices.shape.as_list()[:-1]), math.prod(inner))
    strides = [math.prod(outer[axis + 1 :]) for axis in range(depth)]
    places = tf.reduce_sum(indices * tf.constant(strides, indices.dtype), -1)
    flat = tf.reshape(updates, [-1, math.prod(inner)]) if batch else tf.reshape(updates, [1, math.prod(inner)])
    return tf.reshape(_gathered("Sum", flat, tf.reshape(places, [-1]), math.prod(outer)), shape)


def _tensor_scatter(kind: str) -> Rule:
    """TensorScatterAdd, Sub, Max, Min: the tensor, and what is scattered."""

    def rule(call: Call) -> Result:
        import tensorflow as tf

        tensor, indices, updates = call.real(0), call.real(1), call.real(2)
        depth = call.size(1, -1)
        shape = tensor.shape.as_list()
        if None in shape:
            raise Untranslatable(f"{call.op.type} into a tensor of open size")
        outer, width = math.prod(shape[:depth]), math.prod(shape[depth:])
        _bounded(call, outer, _product(indices.shape.as_list()[:-1]), width)
        strides = [math.prod(shape[axis + 1 : depth]) for axis in range(depth)]
        places = tf.reshape(tf.reduce_sum(indices * tf.constant(strides, indices.dtype), -1), [-1])
        flat = tf.reshape(updates, [-1, width])
        kind_of_sum = "Sum" if kind in ("Add", "Sub") else kind
        found = tf.reshape(_gathered(kind_of_sum, flat, places, outer, infinite=True), shape)
        combine = {"Add": tf.add, "Sub": tf.subtract, "Max": tf.maximum, "Min": tf.minimum}[kind]
        return combine(tensor, found)

    return rule


def _unsorted(kind: str) -> Rule:
    def rule(call: Call) -> Result:
        import tensorflow as tf

        data, ids = call.real(0), call.real(1)
        count = int(call.known(2, "the number of segments"))
        flat = _flat(data, ids.shape.rank)
        _bounded(call, count, _product(ids.shape.as_list()), int(flat.shape[1]))
        found = _gathered(kind, flat, tf.reshape(ids, [-1]), count)
        return tf.reshape(found, [count, *data.shape.as_list()[ids.shape.rank :]])

    return rule


def _sorted(kind: str, *, sparse: bool) -> Rule:
    """Segments by sorted ids, which also say how many there are, where that is not an input."""

    def rule(call: Call) -> Result:
        import tensorflow as tf

        data, ids = call.real(0), call.real(2 if sparse else 1)
        if sparse:
            data = tf.gather(data, call.real(1))
        if "NumSegments" in call.op.type:
            count = int(call.known(3, "the number of segments"))
        else:
            known = call.known(2 if sparse else 1, "the number of segments")
            count = int(known.max(initial=-1)) + 1
        flat = _flat(data, 1)
        _bounded(call, count, _product(ids.shape.as_list()), int(flat.shape[1]))
        found = _gathered(kind if kind in ("Prod", "Max", "Min") else "Sum", flat, ids, count)
        rows = _occupied(ids, count, data.dtype)
        if kind == "Mean":
            found /= tf.maximum(rows, 1)
        elif kind == "SqrtN":
            found /= tf.sqrt(tf.maximum(rows, 1))
        elif kind in ("Max", "Min"):
            found = tf.where(rows > 0, found, tf.zeros([], found.dtype))
        return tf.reshape(found, [count, *data.shape.as_list()[1:]])

    return rule


def _bincount(call: Call) -> Result:
    """How often, or with what weight, each number occurs; numbers from `size` on do not count."""
    import tensorflow as tf

    numbers, weights = call.real(0), call.real(2)
    count = int(call.known(1, "the size"))
    kind = call.op.outputs[0].dtype
    rows = 1 if call.op.type == "Bincount" or numbers.shape.rank == 1 else None
    _bounded(call, count, _product(numbers.shape.as_list()), 1)
    if weights.shape.num_elements() == 0:
        weights = tf.constant(1, kind)
    own = tf.equal(tf.cast(numbers, tf.int32)[..., tf.newaxis], np.arange(count, dtype=np.int32))
    found = tf.where(own, weights[..., tf.newaxis], tf.zeros([], kind))
    if call.op.type == "DenseBincount" and call.attr("binary_output"):
        found = tf.cast(own, kind)
        result = tf.reduce_max(found, -2)
    else:
        result = tf.reduce_sum(found, -2)
    return (
        result
        if rows is None or numbers.shape.rank == 1
        else tf.reduce_sum(result, list(range(numbers.shape.rank - 1)))
    )


RULES: dict[str, Rule] = {
    **dict.fromkeys(("Bincount", "DenseBincount"), _bincount),
    "ScatterNd": _scatter_nd,
    **{f"Segment{kind}": _sorted(kind, sparse=False) for kind in ("Sum", "Mean", "Prod", "Max", "Min")},
    **{
        f"SparseSegment{kind}{count}": _sorted(kind, sparse=True)
        for kind in ("Sum", "Mean", "SqrtN")
        for count in ("", "WithNumSegments")
    },
    **{f"TensorScatter{kind}": _tensor_scatter(kind) for kind in ("Add", "Sub", "Max", "Min")},
    **{f"UnsortedSegment{kind}": _unsorted(kind) for kind in ("Sum", "Prod", "Max", "Min")},
}
