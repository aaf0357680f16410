"""Frozen dataclasses to JSON and back, with paths relative to the folder that the JSON lies in.

JSON has no infinity: an infinite error is written as null, and read back as infinite where a number must be.
A nested record that has a `folder` of its own is stored as a reference to that folder, not copied.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from enum import Enum
from pathlib import Path
from typing import TypeAlias, TypeVar, Union

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Record = TypeVar("Record")


def encode(value: object, folder: Path) -> Json:
    """The JSON form of a record, as it would lie in `folder`."""
    if isinstance(value, Enum):
        return encode(value.value, folder)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return os.path.relpath(value, folder)
    if isinstance(value, tuple | list):
        return [encode(item, folder) for item in value]
    if isinstance(value, dict):
        return {str(key): encode(item, folder) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = getattr(value, "folder", None)
        if own is not None and own != folder:
            return {"folder": os.path.relpath(own, folder)}
        return {
            field.name: encode(getattr(value, field.name), folder)
            for field in dataclasses.fields(value)
            if field.name != "folder"
        }
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def decode(kind: type[Record], value: Json, folder: Path) -> Record:
    """The record of class `kind` in a JSON form that was read from `folder`.

    Raises:
        KeyError, TypeError, ValueError: the JSON does not describe such a record.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{kind.__name__}: an object was expected")
    hints = typing.get_type_hints(kind)
    values: dict[str, object] = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name == "folder":
            values["folder"] = folder
        elif field.name in value:
            values[field.name] = _decode(hints[field.name], value[field.name], folder)
        elif field.default is dataclasses.MISSING:
            raise KeyError(f"{kind.__name__}.{field.name}")
    return kind(**values)


def _decode(hint: object, value: Json, folder: Path) -> object:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _decode(next(arm for arm in typing.get_args(hint) if arm is not type(None)), value, folder)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("a list was expected")
        arms = typing.get_args(hint)
        if len(arms) == 2 and arms[1] is Ellipsis:
            return tuple(_decode(arms[0], item, folder) for item in value)
        return tuple(_decode(arm, item, folder) for arm, item in zip(arms, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {key: _decode(typing.get_args(hint)[1], item, folder) for key, item in value.items()}
    if hint is Path:
        return Path(os.path.normpath(folder / str(value)))
    if hint is float and value is None:
        return math.inf
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, dict) and set(value) == {"folder"}:
            from stages import storage

            return storage.load(hint, Path(os.path.normpath(folder / str(value["folder"]))))
        return decode(hint, value, folder)
    return value
