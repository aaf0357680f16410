"""One ONNX model in several precisions."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from stages import precision
from stages.precision import QUANTISED, Range

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array


def mixed(
    model: onnx.ModelProto,
    ops: Mapping[str, Sequence[str]],
    weights: MutableMapping[str, Array],
    ranges: Mapping[str, Range],
) -> onnx.ModelProto:
    """A model whose TensorFlow ops compute in the precision that they are listed under.

    First the ops in int8 or fp8 are quantised, then all that is not in fp32 computes in the half precision: so does what
    can't be quantised of an op that is to be.

    Args:
        model: its weights loaded, or stand-ins as `onnx_files.load_model` makes them.
        ops: the region's TensorFlow ops by precision, at most one quantised and one half precision among them.
        weights: the values of stand-ins by key; gains those of the new model.
        ranges: of the model's tensors, for what is quantised.

    Raises:
        BuildError: the model can't be converted.
    """
    full = ops.get("fp32", ())
    quantised = next((name for name in QUANTISED if ops.get(name)), None)
    half = next((name for name in ("fp16", "bf16") if ops.get(name)), "fp16")
    if quantised is not None:
        higher = [op for name, members in ops.items() if name != quantised for op in members]
        model = precision.convert(model, quantised, weights, ranges=ranges, keep=higher, rest="fp32")
    elif not ops.get(half):
        return model
    return precision.convert(model, half, weights, ranges=ranges, keep=full)
