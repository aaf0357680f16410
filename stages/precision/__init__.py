"""Precision is written into a region's ONNX model: TensorRT's strongly typed networks compute in the types that it states.

`half.py` places casts (fp16, bf16), `quantize.py` Q/DQ pairs (int8, fp8) by ranges that `calibration.py` collects and
`table.py` keeps; `fake.py` finds the ranges that a model brings with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING

from stages.errors import BuildError
from stages.precision.half import FORMATS, in_half
from stages.precision.quantize import QUANTISED, in_8_bits
from stages.precision.table import CalibrationTable, Range

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array

__all__ = ["FORMATS", "QUANTISED", "CalibrationTable", "Range", "convert"]


def convert(
    model: onnx.ModelProto,
    precision: str,
    weights: MutableMapping[str, Array] | None = None,
    *,
    ranges: Mapping[str, Range] | None = None,
    fixed: Mapping[str, Range] | None = None,
    keep: Collection[str] = (),
    rest: str = "fp16",
) -> onnx.ModelProto:
    """A model that computes in `precision`; inputs and outputs keep their names, dtypes and order.

    `fp32` and `tf32` (a builder flag) return `model` itself. The others return a new one with its nodes in order and
    their doc strings kept. `int8` and `fp8` put Q/DQ pairs around what gains from them, by `ranges`; the remainder
    computes in `rest`.

    Args:
        model: its weights loaded, or stand-ins as `onnx_files.load_model` makes them.
        weights: the values of stand-ins by key; gains those of the new model.
        ranges: of the main graph's tensors, by name. In fp16 what left its range on samples stays float32.
        fixed: ranges that the model brings with it, by the TensorFlow op (FakeQuant…) that states them.
        keep: TensorFlow ops whose ONNX nodes (by their stamp) compute in float32.
        rest: `fp16` or `fp32`: what is not quantised.

    Raises:
        BuildError: the precision is unknown, nothing can be quantised, or ONNX's type inference rejects the model.
    """
    if precision in ("fp32", "tf32"):
        return model
    values = {} if weights is None else weights
    if precision in FORMATS:
        return in_half(model, precision, values, ranges=ranges or {}, keep=keep)
    if precision not in QUANTISED:
        raise BuildError(
            f"{precision}: is no precision", f"name one of fp32, tf32, {', '.join((*FORMATS, *QUANTISED))}"
        )
    quantised = in_8_bits(model, precision, values, ranges=ranges or {}, fixed=fixed or {}, keep=keep)
    return in_half(quantised, rest, values, ranges=ranges or {}, keep=keep) if rest in FORMATS else quantised
