"""Run an ONNX model here and now, in ONNX Runtime on the CPU, to compare its values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages.compare import Array
from stages.errors import VerifyError


class Session:
    """An ONNX model ready to run.

    Raises:
        VerifyError: ONNX Runtime does not load the model.
    """

    def __init__(self, model: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4
        self._name = model.name
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        # ONNX Runtime's exceptions (Fail, InvalidGraph, NotImplemented, …) have no base class but Exception.
        except Exception as error:
            raise self._failed(error) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name; `inputs` holds an array for each of the model's inputs.

        Raises:
            VerifyError: ONNX Runtime does not run the model.
        """
        try:
            names = [output.name for output in self._session.get_outputs()]
            feeds = {name: _value(np.asarray(array, order="C")) for name, array in inputs.items()}
            values = self._session.run_with_ort_values(names, feeds)
            return {name: _array(value) for name, value in zip(names, values, strict=True)}
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> VerifyError:
        return VerifyError(f"ONNX Runtime can't run {self._name}: {str(error).splitlines()[0]}")


def run_model(model: Path, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of an ONNX model by name; `inputs` holds an array for each of its inputs.

    Raises:
        VerifyError: ONNX Runtime does not load or run the model.
    """
    return Session(model).run(inputs)


def _value(array: Array) -> object:
    import onnxruntime as ort
    from onnx import TensorProto

    if array.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array(value: object) -> Array:
    import ml_dtypes

    if value.data_type() == "tensor(bfloat16)":  # type: ignore[attr-defined]
        count = int(np.prod(value.shape()))  # type: ignore[attr-defined]
        raw = (np.ctypeslib.ctypes.c_uint16 * count).from_address(value.data_ptr())  # type: ignore[attr-defined]
        wide = np.frombuffer(raw, np.uint16).reshape(value.shape())  # type: ignore[attr-defined]
        array: Array = wide.view(ml_dtypes.bfloat16).copy()
    else:
        array = value.numpy()  # type: ignore[attr-defined]
    return array
