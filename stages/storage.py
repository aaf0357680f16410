"""Artifacts on disk: a folder with `artifact.json` and the files that it names.

Paths in it are relative to the folder; an artifact that builds on an earlier one names that folder relatively too, so
that a whole conversion can be moved. `write_folder` makes a folder appear complete or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from stages import recordjson
from stages.artifacts import FORMAT_VERSION
from stages.errors import ArtifactError

Artifact = TypeVar("Artifact")
REMEDY = "name a folder where you may write, on a disk with space"


def save(record: object, folder: Path) -> None:
    """Write `artifact.json` for a record whose files lie in `folder` (its own `folder` field need not be that yet)."""
    body = recordjson.encode(record, folder)
    assert isinstance(body, dict)
    head: recordjson.Json = {"artifact": type(record).__name__, "format_version": FORMAT_VERSION, **body}
    (folder / "artifact.json").write_text(json.dumps(head, indent=1) + "\n")


def load(kind: type[Artifact], folder: Path) -> Artifact:
    """Read the artifact of class `kind` from its folder.

    Raises:
        ArtifactError: there is none, it is another stage's, of a newer format version, or damaged.
    """
    path = folder / "artifact.json"
    try:
        body = json.loads(path.read_text())
        name, version = body["artifact"], body["format_version"]
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{folder}: holds no artifact.json", "give the folder that an earlier stage wrote"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: is damaged: {error}", "run the stage that wrote it again") from error
    if name != kind.__name__:
        raise ArtifactError(f"{folder}: holds a {name}, not a {kind.__name__}", "give the folder of the stage before")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{folder}: has format version {version}, this GraftRT knows {FORMAT_VERSION}", "upgrade graftrt"
        )
    try:
        return recordjson.decode(kind, body, folder)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: is damaged: {error}", "run the stage that wrote it again") from error


@contextlib.contextmanager
def write_folder(out: Path) -> Iterator[Path]:
    """A fresh folder to write in, renamed to `out` when the block ends well and removed when it does not.

    Raises:
        ArtifactError: `out` exists, or its parent can't be written.
    """
    refuse_existing(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise ArtifactError(f"{out}: can't be written: {error.strerror}", REMEDY) from error
    try:
        with os_errors_stated(out):
            partial.chmod(0o755)
            yield partial
            partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(out: Path) -> None:
    """Raise ArtifactError if something has the name `out`."""
    if os.path.lexists(out):  # a link that leads nowhere is something too; and no error where it can't be known
        raise ArtifactError(f"{out}: exists already", "name another folder, or remove this one")


@contextlib.contextmanager
def os_errors_stated(out: Path) -> Iterator[None]:
    """Within the block, what the operating system refuses while `out` is written becomes an ArtifactError."""
    try:
        yield
    except OSError as error:
        words = error.strerror or str(error)  # numpy's short write has no number
        what = f"{words} ({error.filename})" if error.filename else words
        raise ArtifactError(f"{out}: {what}", "free some disk space or check the permissions") from error


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where the file system has no hard links: models and plans are
    large, and never changed once written."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def sha256_file(*paths: Path) -> str:
    """SHA-256 (hex) over the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
