"""What a rule is given: one op of a graph, with its inputs as the rule may use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from stages.compare import Array

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, slots=True)
class Pair:
    """A complex tensor as two real ones of its shape."""

    re: tf.Tensor
    im: tf.Tensor


Value: TypeAlias = "tf.Tensor | Pair"


class Untranslatable(Exception):
    """This one op can't be expanded; the message says why, for the report."""


class _Leave:
    """The type of `LEAVE`."""


LEAVE = _Leave()
"""A rule's answer where tf2onnx's own translation of this one op is right."""


@dataclass(frozen=True, slots=True)
class Call:
    """One op to expand.

    Attributes:
        op: the op in its own graph, for its attributes and the static shapes of its inputs and outputs.
        inputs: its inputs in the graph of the expansion; a Pair for each complex one.
        weights: values of large constants, which the graph holds as Const nodes without a value.
    """

    op: tf.Operation
    inputs: tuple[Value, ...]
    weights: Mapping[str, bytes]

    def attr(self, name: str) -> object:
        return self.op.get_attr(name)

    def number(self, name: str) -> int:
        return int(self.op.get_attr(name))

    def real(self, index: int) -> tf.Tensor:
        """Input `index`, which is not complex."""
        value = self.inputs[index]
        assert not isinstance(value, Pair)
        return value

    def pair(self, index: int) -> Pair:
        """Input `index` as a complex number; a real input's imaginary part is zero."""
        import tensorflow as tf

        value = self.inputs[index]
        return value if isinstance(value, Pair) else Pair(value, tf.zeros_like(value))

    def constant(self, index: int) -> Array | None:
        """Input `index`, if its value is known."""
        import tensorflow as tf

        tensor = self.op.inputs[index]
        if tensor.op.type == "Const" and tensor.op.name in self.weights:
            flat = np.frombuffer(self.weights[tensor.op.name], tensor.dtype.as_numpy_dtype)
            return flat.reshape(tensor.shape.as_list())
        value = tf.get_static_value(tensor)
        return _computed(tensor) if value is None else np.asarray(value)

    def known(self, index: int, what: str) -> Array:
        """Input `index`, whose value must be known.

        Raises:
            Untranslatable: it is computed at run time.
        """
        value = self.constant(index)
        if value is None:
            raise Untranslatable(f"{self.op.type}: {what} is computed at run time")
        return value

    def size(self, index: int, axis: int) -> int:
        """Size of an axis of input `index`, which must be known.

        Raises:
            Untranslatable: it is open.
        """
        size = self.op.inputs[index].shape[axis]
        if size is None:
            raise Untranslatable(f"{self.op.type}: axis {axis} of input {index} has no fixed size")
        return int(size)


_CONE = 100
"""Most ops that are looked at to find a value that sizes decide."""


def _computed(tensor: tf.Tensor) -> Array | None:
    """A value that is computed from known sizes only, as tf.shape(x)[1:3] of an x with an open batch: it comes out the
    same whatever the open sizes are."""
    import tensorflow as tf

    shapes, seen, todo = [], set(), [tensor]
    while todo:
        op = todo.pop().op
        if op.name in seen:
            continue
        seen.add(op.name)
        if op.type == "Shape" and op.inputs[0].shape.rank is not None:
            shapes.append(op)
        elif op.type.startswith("Placeholder") or op.op_def.is_stateful or len(seen) > _CONE:
            return None
        else:
            todo += op.inputs
    if not shapes:
        return None
    found = []
    with tf.compat.v1.Session(graph=tensor.graph) as session:
        for open_size in (1, 3, 1009):
            sizes = {op: [open_size if n is None else n for n in op.inputs[0].shape.as_list()] for op in shapes}
            try:
                found.append(session.run(tensor, {op.outputs[0]: size for op, size in sizes.items()}))
            except tf.errors.OpError:
                return None
    return found[0] if all(np.array_equal(found[0], other) for other in found) else None


Result: TypeAlias = "Value | Sequence[Value] | _Leave"
Rule: TypeAlias = Callable[[Call], Result]
