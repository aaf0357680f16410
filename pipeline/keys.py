"""Keys: what a conversion and its stages depend on, as one number. Two equal keys mean the same result."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.versions import installed
from stages import checkpoints, storage, tfjs
from stages.backends.hardware import gpus
from stages.compare import Array

_PACKAGES = (
    "tensorflow",
    "keras",
    "tf_keras",
    "tf2onnx",
    "onnx",
    "onnx-graphsurgeon",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "tensorrt-rtx-cu13-bindings",
    "numpy",
)
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
_NAMED = ("keras:", "pretrained:")


def key_of(*facts: object) -> str:
    """SHA-256 (hex) of facts: texts, numbers, paths, and tuples, lists, sets, mappings and records of such.

    Raises:
        TypeError: anything else, as arrays or iterators, of which `repr` does not say all.
    """
    return hashlib.sha256(repr(_plain(facts)).encode()).hexdigest()


def _plain(fact: object) -> object:
    if fact is None or isinstance(fact, (bool, int, float, str, Path)):
        return fact
    if isinstance(fact, np.generic):
        return fact.item()
    if isinstance(fact, Mapping):
        return _plain(set(fact.items()))
    if isinstance(fact, (set, frozenset)):
        return sorted(map(_plain, fact), key=repr)
    if isinstance(fact, (tuple, list)):
        return [_plain(part) for part in fact]
    if dataclasses.is_dataclass(fact) and not isinstance(fact, type):
        return [type(fact).__name__, *((f.name, _plain(getattr(fact, f.name))) for f in dataclasses.fields(fact))]
    raise TypeError(f"no fact to make a key of: {type(fact).__name__}")


def conversion_key(model: object, op_libraries: Iterable[Path], *, leave_out: Path) -> str | None:
    """What a whole conversion depends on: the model, its op libraries, GraftRT itself and what it stands on.

    Args:
        model: as for `pipeline.convert`.
        leave_out: folder that is no part of the model although it may lie in its folder.

    Returns:
        None for a model that lives in memory, or that isn't there.

    Raises:
        ModelError: a checkpoint lacks a file.
    """
    if not isinstance(model, (str, Path)):
        return None
    files = [path for path in op_libraries if path.is_file()]
    if not str(model).startswith(_NAMED):
        path = Path(os.path.abspath(Path(model).expanduser()))  # noqa: PTH100 - links stay as they are
        parts = model_files(path, leave_out.absolute())
        if parts is None:
            return None
        files += parts
        model = path
    return key_of(str(model), [(str(file), storage.sha256_file(file)) for file in files], _installed())


def model_files(path: Path, leave_out: Path) -> list[Path] | None:
    """Every file that a model given by its path consists of, in order; None if that is no model."""
    checkpoint = checkpoints.find(path)
    if checkpoint is not None:
        return sorted(map(Path, glob.glob(f"{glob.escape(str(checkpoint.with_suffix('')))}.*")))  # noqa: PTH207
    if any(os.path.isfile(path / name) for name in _SAVED_MODEL):  # noqa: PTH113 - Path.is_file raises on long names
        return sorted(file for file in path.rglob("*") if file.is_file() and leave_out not in file.parents)
    if not os.path.isfile(path):  # noqa: PTH113 - likewise
        return None
    return [path, *tfjs.weight_files(path)] if path.suffix == tfjs.SUFFIX else [path]


def samples_key(samples: Sequence[Mapping[str, Array]]) -> str:
    """Of the values of samples, whatever they were read from."""
    digest = hashlib.sha256()
    for sample in samples:
        for name, array in sorted(sample.items()):
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()


@cache
def _installed() -> str:
    """GraftRT's own sources, Python and the packages that a result depends on."""
    root = Path(__file__).parent.parent
    sources = sorted(path for package in ("pipeline", "stages") for path in (root / package).rglob("*.*"))
    return key_of(
        [storage.sha256_file(*(path for path in sources if path.suffix in (".py", ".json", ".cc", ".h", ".html")))],
        platform.python_version(),
        platform.machine(),
        gpus(),
        installed(_PACKAGES),
    )
