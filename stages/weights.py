"""Large constants of a frozen graph, kept as `.npy` files beside its protobuf."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.artifacts import Weight

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.compare import Array

LARGE_BYTES = 1 << 20
"""Constants larger than this lie in files of their own: a protobuf holds 2 GB in all."""
_SMALL_BYTES = 16 << 10
_INSIDE_BYTES = 256 << 20
"""Once so much lies in the graph, constants above `_SMALL_BYTES` don't: a thousand of 1 MiB are too many as well."""
MARK = "_graftrt_weight"
"""Attribute of the Placeholder that stands for such a constant in the graph."""


class WeightWriter:
    """Puts values into the nodes of one graph, the large ones into files under `folder`/weights."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights: list[Weight] = []
        self._inside = 0

    @property
    def weights(self) -> tuple[Weight, ...]:
        return tuple(self._weights)

    def put(self, node: tf.compat.v1.NodeDef, value: Array, dtype: tf.DType, capture: int | None = None) -> None:
        """Make `node` a constant: a Const, or a marked Placeholder if `value` is large; `capture` as in `Weight`."""
        from tensorflow.python.framework import tensor_util

        node.attr.clear()
        del node.input[:]
        node.attr["dtype"].type = dtype.as_datatype_enum
        if not self._is_large(value):
            self._inside += value.nbytes
            node.op = "Const"
            node.attr["value"].tensor.CopyFrom(tensor_util.make_tensor_proto(value, dtype, value.shape))
            return
        file = f"weights/{len(self._weights)}.npy"
        (self._folder / "weights").mkdir(exist_ok=True)
        np.save(self._folder / file, _plain(value))
        node.op = "Placeholder"
        node.attr[MARK].b = True
        node.attr["shape"].shape.SetInParent()
        for size in value.shape:
            node.attr["shape"].shape.dim.add().size = size
        self._weights.append(Weight(node.name, file, dtype.name, tuple(value.shape), capture))

    def move(self, node: tf.compat.v1.NodeDef) -> None:
        """Move a Const's value out of the graph if it is large."""
        import tensorflow as tf
        from tensorflow.python.framework import tensor_util

        tensor = node.attr["value"].tensor
        limit = self._limit()
        if tensor.ByteSize() > limit or _elements(tensor) > limit // 16:
            value = tensor_util.MakeNdarray(tensor)
            if self._is_large(value):
                self.put(node, value, tf.as_dtype(node.attr["dtype"].type))
                return
        self._inside += tensor.ByteSize()

    def _limit(self) -> int:
        return LARGE_BYTES if self._inside < _INSIDE_BYTES else _SMALL_BYTES

    def _is_large(self, value: Array) -> bool:
        return value.dtype.kind != "O" and value.nbytes > self._limit()


def _elements(tensor: tf.compat.v1.TensorProto) -> int:
    """Number of elements; a protobuf may say one value for all of them."""
    count = 1
    for dim in tensor.tensor_shape.dim:
        count *= dim.size
    return count


def _plain(value: Array) -> Array:
    """The same bytes in a dtype that `.npy` knows: bfloat16 and float8 are not numpy's own."""
    plain = value.dtype.kind in "biufc" and value.dtype.isbuiltin == 1
    return value if plain else np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
