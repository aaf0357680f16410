"""Moving values: padding, rolling, diagonals, indices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.translate.expand.call import LEAVE, Call, Result, Rule, Untranslatable

if TYPE_CHECKING:
    pass


def _mirror_pad(call: Call) -> Result:
    """Axis by axis: a gather where the size is known, else the reversed ends around it."""
    import tensorflow as tf

    x, pads = call.real(0), call.known(1, "the padding")
    skip = 1 if call.op.get_attr("mode") == b"REFLECT" else 0
    for axis, (before, after) in enumerate(pads.tolist()):
        size = call.op.inputs[0].shape[axis]
        if before == after == 0:
            continue
        if size is not None:
            places = np.pad(np.arange(size), (before, after), "reflect" if skip else "symmetric")
            x = tf.gather(x, places.astype(np.int32), axis=axis)
            continue
        around = (slice(None),) * axis
        parts = [x[(*around, slice(skip, skip + before))], x, x[(*around, slice(-skip - after, -skip or None))]]
        parts = [tf.reverse(parts[0], [axis]), x, tf.reverse(parts[2], [axis])]
        x = tf.concat([part for part, wanted in zip(parts, (before, 1, after), strict=True) if wanted], axis)
    return x


def _pad_v2(call: Call) -> Result:
    """tf2onnx pads float16 and booleans with a float32 constant."""
    import tensorflow as tf

    x = call.real(0)
    if x.dtype not in (tf.float16, tf.bfloat16, tf.bool):
        return LEAVE
    wide = tf.int32 if x.dtype == tf.bool else tf.float32
    padded = tf.raw_ops.PadV2(
        input=tf.cast(x, wide), paddings=call.real(1), constant_values=tf.cast(call.real(2), wide)
    )
    return tf.cast(padded, x.dtype)


def _roll(call: Call) -> Result:
    """The end, then the beginning; TensorRT refuses what tf2onnx makes of it."""
    import tensorflow as tf

    x, shifts, axes = call.real(0), call.known(1, "the shift").ravel(), call.known(2, "the axis").ravel()
    for shift, axis in zip(shifts.tolist(), (axes % x.shape.rank).tolist(), strict=True):
        size = call.op.inputs[0].shape[axis]
        if size is None:
            return LEAVE
        if size == 0 or shift % size == 0:
            continue
        cut, around = size - shift % size, (slice(None),) * axis
        x = tf.concat([x[(*around, slice(cut, None))], x[(*around, slice(None, cut))]], axis)
    return x


def _on_diagonal(rows: int, columns: int, low: int, high: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    offsets = np.arange(columns) - np.arange(rows)[:, np.newaxis]
    found: np.ndarray[tuple[int, int], np.dtype[np.bool_]] = (offsets >= low) & (offsets <= high)
    return found


def _offset(call: Call) -> int:
    """The only diagonal that is meant: 0, or the input k."""
    if len(call.inputs) < 2 or call.op.type in ("MatrixSetDiag", "MatrixDiag", "MatrixDiagPart"):
        return 0
    k = call.known(2 if "Set" in call.op.type else 1, "the diagonal").ravel()
    if k.min() != k.max():
        raise Untranslatable(f"{call.op.type} of several diagonals has no translation")
    return int(k[0])


def _matrix_diag(call: Call) -> Result:
    import tensorflow as tf

    diagonal, k = call.real(0), _offset(call)
    length = call.size(0, -1)
    sizes, filling = (length + abs(k),) * 2, tf.zeros([], diagonal.dtype)
    if len(call.inputs) > 1:
        given = [int(call.known(i, "the size")) for i in (2, 3)]
        sizes = (given[0] if given[0] >= 0 else sizes[0], given[1] if given[1] >= 0 else sizes[1])
        filling = call.real(4)
        if given != [-1, -1] and sizes != (length + max(-k, 0), length + max(k, 0)):
            raise Untranslatable(f"{call.op.type} of a matrix that the diagonal does not fill has no translation")
    # Row i of the matrix has its value at column i + k; where k is negative, column j has it at row j - k.
    values = diagonal[..., tf.newaxis] if k >= 0 else diagonal[..., tf.newaxis, :]
    axis = -2 if k >= 0 else -1
    missing = sizes[0 if k >= 0 else 1] - length
    pads = [[0, 0]] * values.shape.rank
    pads[axis] = [0, missing]
    return tf.where(_on_diagonal(*sizes, k, k), tf.pad(values, pads) if missing else values, filling)


def _matrix_diag_part(call: Call) -> Result:
    import tensorflow as tf

    matrix, k = call.real(0), _offset(call)
    rows, columns = call.size(0, -2), call.size(0, -1)
    y, x = np.nonzero(_on_diagonal(rows, columns, k, k))
    fixed = matrix.shape.as_list()[:-2]
    if fixed.count(None) > 1:
        raise Untranslatable(f"{call.op.type} of matrices of two open sizes has no translation")
    flat = tf.reshape(matrix, [-1 if size is None else size for size in fixed] + [rows * columns])
    return tf.gather(flat, (y * columns + x).astype(np.int32), axis=-1)


def _matrix_set_diag(call: Call) -> Result:
    import tensorflow as tf

    matrix, diagonal, k = call.real(0), call.real(1), _offset(call)
    rows, columns = call.size(0, -2), call.size(0, -1)
    values = diagonal[..., tf.newaxis] if k >= 0 else diagonal[..., tf.newaxis, :]
    axis = -2 if k >= 0 else -1
    missing = (rows if k >= 0 else columns) - call.size(1, -1)
    pads = [[0, 0]] * values.shape.rank
    pads[axis] = [0, missing]
    return tf.where(_on_diagonal(rows, columns, k, k), tf.pad(values, pads) if missing else values, matrix)


def _diag(call: Call) -> Result:
    import tensorflow as tf

    x = call.real(0)
    if x.shape.rank != 1:
        raise Untranslatable(f"Diag of rank {x.shape.rank} has no translation")
    return tf.where(np.eye(call.size(0, 0), dtype=bool), x, tf.zeros([], x.dtype))


def _diag_part(call: Call) -> Result:
    import tensorflow as tf

    x = call.real(0)
    if x.shape.rank != 2:
        raise Untranslatable(f"DiagPart of rank {x.shape.rank} has no translation")
    size = call.size(0, 0)
    return tf.gather(tf.reshape(x, [size * size]), (np.arange(size) * (size + 1)).astype(np.int32))


def _band_part(call: Call) -> Result:
    """tf2onnx multiplies by a mask: infinity and NaN outside the band came through."""
    import tensorflow as tf

    x, low, high = call.real(0), int(call.known(1, "the band")), int(call.known(2, "the band"))
    sizes = tf.shape(x)
    rows, columns = (
        np.arange(x.shape[axis]) if x.shape[axis] is not None else tf.range(sizes[axis]) for axis in (-2, -1)
    )
    offsets = tf.cast(columns, tf.int32) - tf.cast(rows, tf.int32)[:, tf.newaxis]
    inside = tf.constant(True)
    if low >= 0:
        inside = tf.logical_and(inside, offsets >= -low)
    if high >= 0:
        inside = tf.logical_and(inside, offsets <= high)
    return tf.where(inside, x, tf.zeros([], x.dtype))


def _block_nd(call: Call) -> Result:
    """The older forms with one block size."""
    import tensorflow as tf

    size, borders = [call.number("block_size")] * 2, call.real(1)
    if call.op.type == "SpaceToBatch":
        return tf.raw_ops.SpaceToBatchND(input=call.real(0), block_shape=size, paddings=borders)
    return tf.raw_ops.BatchToSpaceND(input=call.real(0), block_shape=size, crops=borders)


def _reverse(call: Call) -> Result:
    import tensorflow as tf

    return tf.reverse(call.real(0), np.flatnonzero(call.known(1, "the axes")).astype(np.int32))


def _unravel(call: Call) -> Result:
    import tensorflow as tf

    indices, parts = call.real(0), []
    for size in call.known(1, "the shape").tolist()[::-1]:
        parts.append(tf.math.floormod(indices, size))
        rest = tf.raw_ops.TruncateDiv(x=indices, y=tf.constant(size, indices.dtype))
        indices = rest
    return tf.stack(parts[::-1])


def _broadcast_args(call: Call) -> Result:
    import tensorflow as tf

    shapes = [call.real(0), call.real(1)]
    rank = max(call.size(0, 0), call.size(1, 0))
    ones = [tf.ones([rank - call.size(i, 0)], shapes[i].dtype) for i in (0, 1)]
    a, b = (tf.concat(pair, 0) for pair in zip(ones, shapes, strict=True))
    return tf.where(tf.equal(a, 1), b, a)


def _conjugate_transpose(call: Call) -> Result:
    import tensorflow as tf

    return tf.transpose(call.real(0), call.real(1))


def _sparse_to_dense(call: Call) -> Result:
    import tensorflow as tf

    places, shape, values, default = (call.real(i) for i in range(4))
    if places.shape.rank is None:
        raise Untranslatable("SparseToDense of indices of unknown rank")
    rank = call.size(1, 0)
    places = tf.reshape(places, [-1, rank])
    if values.shape.rank == 0:
        values = tf.fill(tf.shape(places)[:1], values)
    return tf.raw_ops.TensorScatterUpdate(tensor=tf.fill(shape, default), indices=places, updates=values)


def _dynamic_stitch(call: Call) -> Result:
    """Of known indices: a gather. Of one that comes twice the last value counts."""
    import tensorflow as tf

    count = len(call.inputs) // 2
    indices = [call.known(i, "the indices") for i in range(count)]
    rows = [
        tf.reshape(call.real(count + i), [index.size, *call.op.inputs[count + i].shape.as_list()[index.ndim :]])
        for i, index in enumerate(indices)
    ]
    flat = np.concatenate([index.ravel() for index in indices])
    places = np.zeros(flat.max(initial=-1) + 1, np.int32)
    places[flat] = np.arange(flat.size)
    if len(np.unique(flat)) < places.size:
        raise Untranslatable("DynamicStitch with places that nothing is put into")
    return tf.gather(tf.concat(rows, 0), places)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("BatchToSpace", "SpaceToBatch"), _block_nd),
    **dict.fromkeys(("MatrixDiag", "MatrixDiagV2", "MatrixDiagV3"), _matrix_diag),
    **dict.fromkeys(("MatrixDiagPart", "MatrixDiagPartV2", "MatrixDiagPartV3"), _matrix_diag_part),
    **dict.fromkeys(("MatrixSetDiag", "MatrixSetDiagV2", "MatrixSetDiagV3"), _matrix_set_diag),
    "BroadcastArgs": _broadcast_args,
    "ConjugateTranspose": _conjugate_transpose,
    **dict.fromkeys(("DynamicStitch", "ParallelDynamicStitch"), _dynamic_stitch),
    "Diag": _diag,
    "DiagPart": _diag_part,
    "MatrixBandPart": _band_part,
    "MirrorPad": _mirror_pad,
    "PadV2": _pad_v2,
    "Reverse": _reverse,
    "Roll": _roll,
    "SparseToDense": _sparse_to_dense,
    "UnravelIndex": _unravel,
}
