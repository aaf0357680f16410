"""Arrays from files that `joblib.dump(…, compress="lz4")` wrote, without joblib, lz4, or running what a pickle says."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt

_MAGIC = b"\x04\x22\x4d\x18"
_STORED = 1 << 31
_SMALLEST_MATCH = 4


def load(path: Path) -> list[npt.NDArray[np.float32]]:
    """The list of arrays in a file.

    Raises:
        ValueError: the file is cut off, or holds anything but arrays.
    """
    file = io.BytesIO(decompress(path.read_bytes()))
    try:
        arrays = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError) as error:
        raise ValueError(f"is no list of arrays: {error}") from error
    if not isinstance(arrays, list) or not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError("is no list of arrays")
    return arrays


def decompress(data: bytes) -> bytes:
    """The content of an LZ4 frame; its checksums are not looked at.

    Source: the frame and block formats in the documentation of LZ4.

    Raises:
        ValueError: it is no LZ4 frame, or is cut off.
    """
    if data[:4] != _MAGIC:
        raise ValueError("is no LZ4 frame")
    try:
        flags = data[4]
        position = 7 + 8 * bool(flags & 0x08) + 4 * bool(flags & 0x01)
        result = bytearray()
        while size := int.from_bytes(data[position : position + 4], "little"):
            block = data[position + 4 : position + 4 + (size & ~_STORED)]
            if size & _STORED:
                result += block
            else:
                _block(block, result)
            position += 4 + len(block) + 4 * bool(flags & 0x10)
        if position + 4 > len(data):
            raise ValueError("is cut off")
    except IndexError as error:
        raise ValueError("is cut off") from error
    return bytes(result)


def _block(block: bytes, result: bytearray) -> None:
    """Append the content of one block: literals, then a copy of what came earlier, again and again."""
    position = 0
    while True:
        token = block[position]
        literals, position = _length(block, position + 1, token >> 4)
        result += block[position : position + literals]
        position += literals
        if position >= len(block):
            return
        offset = int.from_bytes(block[position : position + 2], "little")
        length, position = _length(block, position + 2, token & 15)
        length += _SMALLEST_MATCH
        start = len(result) - offset
        if not 0 <= start < len(result):
            raise ValueError("refers to what is not there")
        repeated = result[start : start + length]
        while len(repeated) < length:  # a copy may overlap what it makes
            repeated += repeated[: length - len(repeated)]
        result += repeated


def _length(block: bytes, position: int, length: int) -> tuple[int, int]:
    """A length of 15 goes on in further bytes, each up to 255; and the position behind them."""
    more = 255 if length == 15 else 0
    while more == 255:
        more = block[position]
        length += more
        position += 1
    return length, position


class _Wrapper:
    """joblib's NumpyArrayWrapper: what describes an array whose bytes follow in the file."""

    shape: tuple[int, ...]
    order: str
    dtype: np.dtype[np.float32]
    numpy_array_alignment_bytes: int | None = None

    def read(self, file: io.BytesIO) -> npt.NDArray[np.float32]:
        if self.dtype.hasobject:
            raise ValueError("holds objects")
        if self.numpy_array_alignment_bytes is not None:
            file.seek(file.read(1)[0], io.SEEK_CUR)
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        return np.frombuffer(file.read(size), self.dtype).reshape(self.shape, order=self.order)  # type: ignore[call-overload, no-any-return]


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler, which finds no other classes than an array's, and reads the arrays between the opcodes."""

    dispatch = pickle._Unpickler.dispatch.copy()

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._source = file

    def find_class(self, module: str, name: str) -> object:
        known = {
            ("joblib.numpy_pickle", "NumpyArrayWrapper"): _Wrapper,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return known[module, name]

    def load_build(self) -> None:
        super().load_build()  # type: ignore[misc]
        stack: list[object] = self.stack  # type: ignore[attr-defined]
        if isinstance(wrapper := stack[-1], _Wrapper):
            stack[-1] = wrapper.read(self._source)

    dispatch[pickle.BUILD[0]] = load_build  # type: ignore[assignment]
