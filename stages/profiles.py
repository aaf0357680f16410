"""Shape profiles of regions: what sizes their inputs take when the model's own inputs take theirs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages import samples
from stages.artifacts import FrozenGraph, Profile, Region, ShapeRange, Tensor
from stages.compare import Array
from stages.scopes import Scope
from stages.sizes import SizeRange, Sizes

_MARGIN = 4
"""How much larger than observed an axis may be whose size depends on the data, where the op that makes it sets no limit."""
_LIMITS = {f"NonMaxSuppression{version}": 2 for version in ("", "V2", "V3", "V4", "V5")}
"""Ops with a result of data-dependent length, and their input that limits it."""


@dataclass(slots=True)
class _Run:
    """One run of the model in TensorFlow: the sizes of its inputs, and the shapes of tensors looked at so far."""

    sizes: Sizes
    inputs: Mapping[str, Array]
    shapes: dict[str, tuple[int, ...]]


class ProfileMaker:
    """Profiles for the regions of one graph, from the model's size ranges; TensorFlow is run only for regions inside the
    graph whose inputs have open axes: at each range's smallest, usual and largest sizes, and on every real sample in it.

    Args:
        model: the whole model, whose inputs have the ranges.
        ranges: the profiles of the whole model.
        given: real samples; the first, resized, stands for the sizes that none of them has.
    """

    def __init__(
        self,
        scope: Scope,
        model: FrozenGraph,
        ranges: Sequence[SizeRange],
        given: Sequence[Mapping[str, Array]] = (),
    ) -> None:
        self._scope = scope
        self._graph = scope.graph
        self._model = model
        self.ranges = tuple(ranges)
        self._like = given[0] if given else None
        self._given = [_Run(Sizes(tuple(sample[t.name].shape for t in model.inputs)), sample, {}) for sample in given]
        self._drawn: dict[Sizes, _Run] = {}
        self._changing: set[tuple[str, int]] = set()
        """Tensors of a loop's body, and their axes, whose size differs from one iteration to another."""

    def profiles(self, region: Region) -> tuple[Profile, ...]:
        """One profile of the region for each of the model's, for the inputs that its ONNX model reads.

        Raises:
            VerifyError: TensorFlow can't run the model at one of the sizes.
        """
        self.observe([region])
        read = onnx_inputs(region)
        result = []
        for size in self.ranges:
            points, real = self._runs(size)
            result.append(tuple(self._range(name, tensor, points, real) for name, tensor in read))
        return tuple(dict.fromkeys(result))

    def observe(self, regions: Sequence[Region]) -> None:
        """Run TensorFlow for what the profiles of these regions will ask: once for all is quicker than once for each.

        Raises:
            VerifyError: TensorFlow can't run the model at one of the sizes.
        """
        read = {tensor.name: tensor for region in regions for _, tensor in onnx_inputs(region)}
        wanted = [name for name, tensor in read.items() if self._must_observe(tensor)]
        for size in self.ranges:
            points, real = self._runs(size)
            for run in (*points, *real):
                missing = [name for name in wanted if name not in run.shapes]
                if missing:
                    self._look(run, missing)

    def _look(self, run: _Run, names: Sequence[str]) -> None:
        """Record the shapes of tensors in one run of the model; in a loop's body the largest that its iterations see."""
        inputs = run.inputs or samples.draw(self._model, run.sizes, 0, self._like)
        seen = [self._scope.reference.run(names, call) for call in self._scope.calls(inputs)]
        for name in names:
            axes = list(zip(*(values[name].shape for values in seen), strict=True))
            self._changing |= {(name, axis) for axis, sizes in enumerate(axes) if len(set(sizes)) > 1}
            run.shapes[name] = tuple(max(sizes) for sizes in axes)

    def _must_observe(self, tensor: Tensor) -> bool:
        inputs = () if self._graph.scope else self._model.inputs
        return None in (tensor.shape or ()) and all(tensor.name != given.name for given in inputs)

    def _at(self, sizes: Sizes) -> _Run:
        if sizes not in self._drawn:
            inputs = () if self._graph.scope else self._model.inputs
            shapes = {tensor.name: shape for tensor, shape in zip(inputs, sizes.shapes, strict=False)}
            self._drawn[sizes] = _Run(sizes, {}, shapes)
        return self._drawn[sizes]

    def _runs(self, size: SizeRange) -> tuple[list[_Run], list[_Run]]:
        """At a range's smallest, usual and largest sizes; on the real samples in it."""
        points = [self._at(point) for point in (size.minimum, size.optimum, size.maximum)]
        return points, [run for run in self._given if size.includes(run.sizes)]

    def _range(self, name: str, tensor: Tensor, points: Sequence[_Run], real: Sequence[_Run]) -> ShapeRange:
        if None not in (tensor.shape or ()):
            static = tuple(axis for axis in tensor.shape or () if axis is not None)
            return ShapeRange(name, static, static, static)
        if not self._must_observe(tensor):
            return ShapeRange(name, *(run.shapes[tensor.name] for run in points))
        axes = [
            (declared,) * 3 if declared is not None else self._axis(tensor, i, points, real)
            for i, declared in enumerate(tensor.shape or ())
        ]
        return ShapeRange(name, *(tuple(axis[p] for axis in axes) for p in range(3)))

    def _axis(self, tensor: Tensor, i: int, points: Sequence[_Run], real: Sequence[_Run]) -> tuple[int, int, int]:
        """The range of an open axis. One that grows in step with an axis of the model's inputs stays as observed; any
        other depends on the data, so it may be smaller and larger another time."""
        runs = [*points, *real]
        seen = [run.shapes[tensor.name][i] for run in runs]
        inputs = () if (tensor.name, i) in self._changing else zip(*(run.sizes.shapes for run in runs), strict=True)
        for columns in inputs:
            for sizes in zip(*columns, strict=True):
                if len(set(sizes)) > 1 and all(a * sizes[0] == s * seen[0] for s, a in zip(sizes, seen, strict=True)):
                    return seen[0], seen[1], seen[2]
        limit = self._limit(tensor)
        high = max(1, *seen) * _MARGIN if limit is None else max(limit, *seen)
        usual = statistics.median_low(seen[len(points) :] or [seen[1]])
        return min(1, *seen), max(1, usual), high

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


def onnx_inputs(region: Region) -> list[tuple[str, Tensor]]:
    """The ONNX inputs of a region that its model has, each with the boundary tensor that feeds it."""
    import onnx

    present = {value.name for value in onnx.load(region.model, load_external_data=False).graph.input}
    named = [(f"input_{i}", tensor) for i, tensor in enumerate(region.inputs)]
    return [(name, tensor) for name, tensor in named if name in present]
