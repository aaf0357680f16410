"""The per-user folder for what can be made again: compiled ops and engines.

What lies there is code that gets loaded, so the folder must be the user's own and writable by nobody else.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stages.errors import ArtifactError

_REMEDY = "remove it, or name another folder in GRAFTRT_CACHE_DIR"


def user_cache_dir(*parts: str) -> Path:
    """The folder `parts` under $GRAFTRT_CACHE_DIR, else $XDG_CACHE_HOME/graftrt, else ~/.cache/graftrt.

    It is made if it is missing. The cache folder and each folder in `parts` has mode 0700 and belongs to the calling
    user. The environment is read at each call.

    Raises:
        ArtifactError: a folder can't be made, is a link or a file, or belongs to someone else.
    """
    own = os.environ.get("GRAFTRT_CACHE_DIR")
    base = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graftrt"
    folder = base.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _claim(folder)
        for part in parts:
            folder = folder / part
            _claim(folder)
    except OSError as error:
        raise ArtifactError(f"cache folder {folder}: {error.strerror}", _REMEDY) from error
    return folder


def _claim(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise ArtifactError(f"cache folder {folder}: is a link or a file", _REMEDY)
    if status.st_uid != os.getuid():
        raise ArtifactError(f"cache folder {folder}: belongs to user {status.st_uid}", _REMEDY)
    if status.st_mode & 0o077:
        folder.chmod(0o700)
