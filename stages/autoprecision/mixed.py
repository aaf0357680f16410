"""One ONNX model in several precisions."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING

from stages import precision
from stages.precision import Range

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array


def mixed(
    model: onnx.ModelProto,
    ops: Mapping[str, Sequence[str]],
    weights: MutableMapping[str, Array],
    *,
    ranges: Mapping[str, Range],
    fixed: Mapping[str, Range],
    quantised_only: bool = False,
) -> onnx.ModelProto:
    """A model whose TensorFlow ops compute in the precision that they are listed under.

    First the ops in int8 are quantised, then all that is not in fp32 computes in fp16: so does what can't be quantised of
    an op that is to be.

    Args:
        model: its weights loaded, or stand-ins as `onnx_files.load_model` makes them.
        ops: the region's TensorFlow ops by precision: int8, fp16, fp32.
        weights: the values of stand-ins by key; gains those of the new model.
        ranges, fixed: as for `precision.convert`.
        quantised_only: where something is in int8 all the rest is in fp32, which a CPU computes faster and as well.

    Raises:
        BuildError: the model can't be converted.
    """
    if ops.get("int8"):
        higher = [op for name, members in ops.items() if name != "int8" for op in members]
        model = precision.convert(model, "int8", weights, ranges=ranges, fixed=fixed, keep=higher, rest="fp32")
        if quantised_only:
            return model
    elif not ops.get("fp16"):
        return model
    return precision.convert(model, "fp16", weights, ranges=ranges, keep=ops.get("fp32", ()))
