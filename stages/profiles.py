"""Shape profiles of regions: what sizes their inputs take when the model's own inputs take theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages import samples
from stages.artifacts import FrozenGraph, Profile, Region, ShapeRange, Tensor
from stages.compare import Array
from stages.samples import SizeRange, Sizes
from stages.scopes import Scope

_MARGIN = 4
"""How much larger than observed an axis may be whose size depends on the data, where the op that makes it sets no limit."""
_LIMITS = {f"NonMaxSuppression{version}": 2 for version in ("", "V2", "V3", "V4", "V5")}
"""Ops with a result of data-dependent length, and their input that limits it."""


class ProfileMaker:
    """Profiles for the regions of one graph, from the model's size ranges; TensorFlow is run only for regions inside the
    graph whose inputs have open axes.

    Args:
        model: the whole model, whose inputs have the ranges.
        ranges: the profiles of the whole model.
        like: a real sample to run TensorFlow on, resized.
    """

    def __init__(
        self,
        scope: Scope,
        model: FrozenGraph,
        ranges: Sequence[SizeRange],
        like: Mapping[str, Array] | None = None,
    ) -> None:
        self._scope = scope
        self._graph = scope.graph
        self._model = model
        self.ranges = tuple(ranges)
        self._like = like
        self._observed: dict[Sizes, dict[str, tuple[int, ...]]] = {}
        self._changing: set[tuple[str, int]] = set()
        """Tensors of a loop's body, and their axes, whose size differs from one iteration to another."""

    def profiles(self, region: Region) -> tuple[Profile, ...]:
        """One profile of the region for each of the model's, for the inputs that its ONNX model reads.

        Raises:
            VerifyError: TensorFlow can't run the model at one of the sizes.
        """
        read = onnx_inputs(region)
        observed = [tensor for _, tensor in read if self._must_observe(tensor)]
        result = []
        for size in self.ranges:
            points = (size.minimum, size.optimum, size.maximum)
            shapes = [self._shapes(point, observed) for point in points]
            result.append(tuple(self._range(name, tensor, points, shapes) for name, tensor in read))
        return tuple(dict.fromkeys(result))

    def _must_observe(self, tensor: Tensor) -> bool:
        inputs = () if self._graph.scope else self._model.inputs
        return None in (tensor.shape or ()) and all(tensor.name != given.name for given in inputs)

    def _shapes(self, point: Sizes, observed: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
        """Sizes at one point of a range; in a loop's body the largest of those that its iterations see."""
        if point not in self._observed:
            inputs = () if self._graph.scope else self._model.inputs
            self._observed[point] = {t.name: shape for t, shape in zip(inputs, point.shapes, strict=False)}
        known = self._observed[point]
        missing = [tensor.name for tensor in observed if tensor.name not in known]
        if missing:
            calls = self._scope.calls(samples.draw(self._model, point, 0, self._like))
            runs = [self._scope.reference.run(missing, call) for call in calls]
            for name in missing:
                axes = list(zip(*(run[name].shape for run in runs), strict=True))
                self._changing |= {(name, axis) for axis, sizes in enumerate(axes) if len(set(sizes)) > 1}
                known[name] = tuple(max(sizes) for sizes in axes)
        return known

    def _range(
        self, name: str, tensor: Tensor, points: Sequence[Sizes], shapes: Sequence[dict[str, tuple[int, ...]]]
    ) -> ShapeRange:
        if None not in (tensor.shape or ()):
            static = tuple(axis for axis in tensor.shape or () if axis is not None)
            return ShapeRange(name, static, static, static)
        low, usual, high = (shape[tensor.name] for shape in shapes)
        if not self._must_observe(tensor):
            return ShapeRange(name, low, usual, high)
        axes = [
            observed
            if declared is not None
            else _widened(observed, () if (tensor.name, n) in self._changing else points, self._limit(tensor))
            for n, (declared, observed) in enumerate(
                zip(tensor.shape or (), zip(low, usual, high, strict=True), strict=True)
            )
        ]
        return ShapeRange(name, *(tuple(axis[p] for axis in axes) for p in range(3)))

    def _limit(self, tensor: Tensor) -> int | None:
        """The most elements that the op which makes a tensor can put into it, if a constant says so."""
        import tensorflow as tf

        node = self._graph.nodes[self._graph.number[tensor.name.rsplit(":", 1)[0]]]
        if node.op not in _LIMITS:
            return None
        source = self._graph.nodes[node.inputs[_LIMITS[node.op]][0]]
        return (
            int(tf.make_ndarray(self._graph.node_defs[source.name].attr["value"].tensor))
            if source.op == "Const"
            else None
        )


def _widened(axis: tuple[int, int, int], points: Sequence[Sizes], limit: int | None) -> tuple[int, int, int]:
    """An open axis that grows in step with an axis of the model's inputs stays as observed; any other depends on the
    data, so it may be smaller and larger another time."""
    for columns in zip(*(point.shapes for point in points), strict=True):
        for sizes in zip(*columns, strict=True):
            if len(set(sizes)) > 1 and all(a * sizes[0] == s * axis[0] for s, a in zip(sizes, axis, strict=True)):
                return axis
    high = max(1, *axis) * _MARGIN if limit is None else max(limit, *axis)
    return min(1, *axis), max(1, axis[1]), high


def onnx_inputs(region: Region) -> list[tuple[str, Tensor]]:
    """The ONNX inputs of a region that its model has, each with the boundary tensor that feeds it."""
    import onnx

    present = {value.name for value in onnx.load(region.model, load_external_data=False).graph.input}
    named = [(f"input_{i}", tensor) for i, tensor in enumerate(region.inputs)]
    return [(name, tensor) for name, tensor in named if name in present]
