"""Keras's weights from a file into variables, without copies on the way.

By itself Keras has h5py make an array and copies it; TensorFlow copies it lest somebody change it, and once more because
numpy aligns memory less than TensorFlow wants: a weight is there five times before it is there once. Keras offers no
hook, so two functions of it are replaced while it loads; where it has none of that name, it loads as it always does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from stages.mapped import aligned_empty, is_aligned, mapped_constant

_LARGE_BYTES = 1 << 20
_Function = Callable[..., Any]


@contextlib.contextmanager
def without_copies() -> Iterator[None]:
    """Let Keras 3 read large float weights straight into memory that a tensor can have."""
    import keras

    with contextlib.ExitStack() as stack:
        if keras.backend.backend() == "tensorflow":
            with contextlib.suppress(ImportError):
                from keras.src.saving import saving_lib

                stack.enter_context(_replaced(saving_lib, "safe_get_h5_dataset", _reading))
            stack.enter_context(_replaced(keras.Variable, "_convert_to_tensor", _sharing))
        yield


def _reading(get: _Function) -> _Function:
    def read(*arguments: object) -> object:
        dataset = get(*arguments)
        dtype = getattr(dataset, "dtype", None)
        large = getattr(dataset, "nbytes", 0) > _LARGE_BYTES and hasattr(dataset, "read_direct")
        if not large or not isinstance(dtype, np.dtype) or dtype.kind != "f":
            return dataset
        array = aligned_empty(dataset.shape, dtype)
        dataset.read_direct(array)
        return array

    return read


def _sharing(convert: _Function) -> _Function:
    def converted(variable: object, value: object, dtype: str | None = None) -> object:
        if isinstance(value, np.ndarray) and value.dtype == dtype and value.nbytes > _LARGE_BYTES and is_aligned(value):
            return mapped_constant(value)
        return convert(variable, value, dtype)

    return converted


@contextlib.contextmanager
def _replaced(owner: Any, name: str, wrapped: Callable[[_Function], _Function]) -> Iterator[None]:
    before = getattr(owner, name, None)
    if before is None:
        yield
        return
    own = name in vars(owner)
    setattr(owner, name, wrapped(before))
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)
