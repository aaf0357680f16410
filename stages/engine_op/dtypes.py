"""One line a dtype: TensorFlow's name and number, ONNX's number, ONNX Runtime's name, bytes an element."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    """`tensorflow` is a tensorflow.DataType, `onnx` a TensorProto.DataType, `ort` what a session reports."""

    name: str
    tensorflow: int
    onnx: int
    ort: str
    bytes: int


_ALL = (
    DType("float32", 1, 1, "tensor(float)", 4),
    DType("float64", 2, 11, "tensor(double)", 8),
    DType("int32", 3, 6, "tensor(int32)", 4),
    DType("uint8", 4, 2, "tensor(uint8)", 1),
    DType("int16", 5, 5, "tensor(int16)", 2),
    DType("int8", 6, 3, "tensor(int8)", 1),
    DType("int64", 9, 7, "tensor(int64)", 8),
    DType("bool", 10, 9, "tensor(bool)", 1),
    DType("bfloat16", 14, 16, "tensor(bfloat16)", 2),
    DType("uint16", 17, 4, "tensor(uint16)", 2),
    DType("float16", 19, 10, "tensor(float16)", 2),
    DType("uint32", 22, 12, "tensor(uint32)", 4),
    DType("uint64", 23, 13, "tensor(uint64)", 8),
)
BY_NAME = {dtype.name: dtype for dtype in _ALL}
BY_TENSORFLOW = {dtype.tensorflow: dtype for dtype in _ALL}
BY_ORT = {dtype.ort: dtype for dtype in _ALL}
