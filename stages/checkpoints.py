"""Find the files of a TensorFlow 1 checkpoint: `PREFIX.meta` (the graph), `PREFIX.index` and `PREFIX.data-…`."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from stages.errors import ModelError


def find(path: Path) -> Path | None:
    """The `.meta` file that a path stands for; None if it stands for no checkpoint.

    Args:
        path: a `.meta` file, a prefix, another file of a checkpoint, or a folder: its `checkpoint` file names the latest.

    Raises:
        ModelError: it stands for a checkpoint of which a file is missing.
    """
    if path.name.endswith(".meta") and _is_file(path):
        meta = path.absolute()
    elif os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises on names that are too long
        if not _is_file(path / "checkpoint") or _is_file(path / "saved_model.pb"):
            return None
        meta = _latest(path.absolute())
    else:
        prefix = path.absolute()
        if path.name.endswith(".index"):
            prefix = prefix.with_name(path.name.removesuffix(".index"))
        elif ".data-" in path.name:
            prefix = prefix.with_name(path.name.rpartition(".data-")[0])
        meta = prefix.with_name(f"{prefix.name}.meta")
        if not _is_file(meta) and not _is_file(prefix.with_name(f"{prefix.name}.index")):
            return None
    if not _is_file(meta):
        raise ModelError(
            f"{path}: {meta.name} is missing, so the checkpoint's graph is unknown",
            "save it with write_meta_graph=True; of a TensorFlow 2 checkpoint, restore it in Python and pass the model",
        )
    return meta


def prefix_of(meta: Path) -> str:
    """The checkpoint's name for TensorFlow.

    Raises:
        ModelError: the files with the values are not there.
    """
    prefix = _with_values(str(meta)[: -len(".meta")])
    if prefix is None:
        raise ModelError(f"{meta}: the checkpoint's .index and .data files are missing", "put them beside it")
    return prefix


def _latest(folder: Path) -> Path:
    """As `tf.train.latest_checkpoint`. A folder that was moved names the place where it was: then the file of the same
    name here is meant."""
    import tensorflow as tf

    state = tf.train.get_checkpoint_state(str(folder))
    if state is None or not state.model_checkpoint_path:
        raise ModelError(f"{folder}: its file `checkpoint` can't be read", "give the .meta file itself")
    named = re.sub(r"-\?{5}-of-\d{5}$", "", state.model_checkpoint_path)
    for prefix in (named, f"{folder}/{named.rpartition('/')[2]}"):
        if _with_values(prefix) is not None:
            return Path(f"{prefix}.meta")
    raise ModelError(f"{folder}: its latest checkpoint, {named}, is not there", "give the .meta file of another")


def _with_values(prefix: str) -> str | None:
    """What TensorFlow calls the values, in either of its two formats, in one file or several; None if they are missing."""
    pattern = glob.escape(prefix)
    if _is_file(Path(f"{prefix}.index")):
        found = glob.glob(f"{pattern}.data-?????-of-?????")  # noqa: PTH207 - a prefix may end in a slash
        return prefix if found else None
    parts = glob.glob(f"{pattern}-?????-of-?????")  # noqa: PTH207
    if parts:
        return f"{prefix}-?????-of-{parts[0][-5:]}"
    return prefix if _is_file(Path(prefix)) else None


def _is_file(path: Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 - Path.is_file raises on names that are too long
