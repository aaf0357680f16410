"""ONNX models on disk, beyond protobuf's limit of 2 GB too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import ExportError
from stages.storage import sha256_file

if TYPE_CHECKING:
    import onnx

_ONE_FILE_BYTES = 1_500_000_000
_INLINE_BYTES = 1024
_ALIGNMENT = 4096


def save_model(model: onnx.ModelProto, path: Path, *, one_file_bytes: int = _ONE_FILE_BYTES) -> None:
    """Write a model as `path`; from `one_file_bytes` of weights on, they go into `<path>.data` beside it.

    The model is as before afterwards. At most one tensor is held twice.

    Raises:
        ExportError: the files can't be written.
    """
    import onnx

    tensors = [tensor for tensor in model.graph.initializer if tensor.HasField("raw_data")]
    data = _data_file(path)
    moved: list[tuple[onnx.TensorProto, int, int]] = []
    try:
        data.unlink(missing_ok=True)
        if sum(_bytes(tensor) for tensor in tensors) < one_file_bytes:
            path.write_bytes(model.SerializeToString(deterministic=True))
            return
        with data.open("wb") as file:
            for tensor in tensors:
                if _bytes(tensor) < _INLINE_BYTES:
                    continue
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))  # so that readers can map it
                offset, length = file.tell(), file.write(tensor.raw_data)
                moved.append((tensor, offset, length))
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", data.name), ("offset", str(offset)), ("length", str(length))):
                    tensor.external_data.add(key=key, value=value)
        path.write_bytes(model.SerializeToString(deterministic=True))
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}", "free some disk space or check the permissions") from error
    finally:
        if moved:
            with data.open("rb") as file:
                for tensor, offset, length in moved:
                    file.seek(offset)
                    tensor.raw_data = file.read(length)
                    tensor.ClearField("data_location")
                    tensor.ClearField("external_data")


def digest(path: Path) -> str:
    """SHA-256 (hex) of a model that `save_model` wrote, weights included."""
    data = _data_file(path)
    return sha256_file(path, data) if data.exists() else sha256_file(path)


def _data_file(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def _bytes(tensor: onnx.TensorProto) -> int:
    """Size of a tensor's values, without fetching them (protobuf would copy them)."""
    import onnx

    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
