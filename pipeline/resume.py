"""What an interrupted conversion had finished: kept beside its output, in `OUT.partial`, until the output is complete.

Each stage's artifact is complete or not there. `resume.json` records for each one the key of all that it was made from;
where the same conversion is asked for again, stages whose key is the same are taken over. A key includes the keys of the
stages before, so that whatever follows a change is made anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TypeVar

from pipeline.keys import key_of
from stages import storage
from stages.errors import ArtifactError, ConversionError

_RECORD = "resume.json"
_LOCK = "lock"
Artifact = TypeVar("Artifact")

log = logging.getLogger(__name__)


def partial_folder(out: Path) -> Path:
    """Where the finished stages of a conversion to `out` lie."""
    return out.with_name(f"{out.name}.partial")


def finished(out: Path) -> tuple[str, ...]:
    """The stages that an interrupted conversion to `out` has left, in order; none while another one is at work."""
    folder = partial_folder(out)
    try:
        with (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return tuple(_read(folder))
    except OSError:
        return ()


@dataclass(frozen=True, slots=True)
class _Done:
    key: str
    seconds: float


class Work:
    """The stages of one conversion.

    Attributes:
        folder: what holds their artifacts.
    """

    def __init__(self, folder: Path, first_key: str | None) -> None:
        self.folder = folder
        self._key = first_key
        self._done = _read(folder) if first_key else {}
        self._worth_keeping = bool(self._done)
        for path in folder.iterdir():  # what a process that was killed left unfinished
            if path.name not in (_LOCK, _RECORD, *self._done):
                _remove(path)

    def taken_over(self, name: str, kind: type[Artifact], *facts: object) -> tuple[Artifact, float] | None:
        """The artifact of a stage that was finished before, and its seconds; None if it must be made, and `add` called
        then: there is nothing in its place, and later stages don't count any more.

        Args:
            kind: class of the artifact.
            facts: what the stage depends on besides what earlier stages depend on; see `key_of`.
        """
        if self._key is not None:
            self._key = key_of(self._key, name, *facts)
        done = self._done.get(name)
        if done is not None and done.key == self._key:
            with contextlib.suppress(ArtifactError):
                return storage.load(kind, self.folder / name), done.seconds
        self.forget(name)
        _remove(self.folder / name)
        self._worth_keeping |= bool(self._done)
        return None

    def add(self, name: str, seconds: float) -> None:
        """A stage is finished: its artifact lies in the folder of its name."""
        if self._key is not None:
            self._done[name] = _Done(self._key, seconds)
            self._write()

    def forget(self, name: str) -> None:
        """No longer count a stage, and those after it, as finished."""
        names = list(self._done)
        if name in names:
            for later in names[names.index(name) :]:
                del self._done[later]
            self._write()

    def kept_after(self, error: BaseException) -> bool:
        """Whether what is finished is worth keeping: not if the model or a setting was wrong from the start."""
        return bool(self._done) and (self._worth_keeping or not isinstance(error, ConversionError))

    def _write(self) -> None:
        beside = self.folder / f".{_RECORD}"
        beside.write_text(json.dumps({name: asdict(done) for name, done in self._done.items()}, indent=1) + "\n")
        beside.replace(self.folder / _RECORD)


@contextlib.contextmanager
def work_folder(out: Path, first_key: str | None) -> Iterator[Work]:
    """The stages of a conversion to `out`, in `OUT.partial`, which goes when the block ends well. After an exception
    finished stages are kept.

    Args:
        first_key: of what the whole conversion depends on; None: start anew and keep nothing.

    Raises:
        ArtifactError: `out` exists or can't be written, another conversion to it is at work, or `OUT.partial` is
            something else.
    """
    storage.refuse_existing(out)
    folder = partial_folder(out)
    with storage.os_errors_stated(out), _claimed(folder):
        storage.refuse_existing(out)
        work = Work(folder, first_key)
        try:
            yield work
        except BaseException as error:
            if not work.kept_after(error):
                _remove(folder)
            raise
        _remove(folder)


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Make the folder, or take it over, and keep other processes out."""
    if os.path.lexists(folder) and not ((folder / _LOCK).exists() or _is_empty(folder)):
        raise ArtifactError(f"{folder}: is in the way, and no conversion made it", "move it, or name another output")
    with contextlib.ExitStack() as stack:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((folder / _LOCK).open("a"))
            except OSError as error:
                raise ArtifactError(f"{folder}: can't be written: {error.strerror}", storage.REMEDY) from error
            _lock(lock, folder)
            # Whoever held it may have removed the folder meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(lock.fileno()), (folder / _LOCK).stat()):
                    break
        yield


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ArtifactError(
            f"{folder}: another conversion is at work there", "wait for it, or name another output"
        ) from error
    except OSError as error:  # a file system without locks
        log.info("%s: can't be locked: %s", folder, error.strerror)


def _read(folder: Path) -> dict[str, _Done]:
    try:
        content = json.loads((folder / _RECORD).read_text())
        return {str(name): _Done(str(done["key"]), float(done["seconds"])) for name, done in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        (path / _RECORD).unlink(missing_ok=True)  # first, so that nothing claims to be finished that is half gone
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
