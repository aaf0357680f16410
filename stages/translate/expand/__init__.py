"""TensorFlow ops that tf2onnx lacks or gets wrong, computed with other TensorFlow ops.

This knows nothing of tf2onnx: a rule can be checked in TensorFlow alone.
"""

from __future__ import annotations

from stages.translate.expand import (
    arithmetic,
    complex_ops,
    fourier,
    images,
    integers,
    layout,
    matrices,
    quantised,
    segments,
)
from stages.translate.expand.call import Rule
from stages.translate.expand.graph import Expanded, expand

__all__ = ["COMPLEX_RULES", "RULES", "Expanded", "expand"]

RULES: dict[str, Rule] = {
    **arithmetic.RULES,
    **fourier.REAL_RULES,
    **images.RULES,
    **integers.RULES,
    **layout.RULES,
    **matrices.RULES,
    **quantised.RULES,
    **segments.RULES,
}
"""Op type of real tensors -> its expansion."""

COMPLEX_RULES: dict[str, Rule] = {**complex_ops.RULES, **fourier.RULES}
"""Op type, where an input or output is complex -> its expansion."""
