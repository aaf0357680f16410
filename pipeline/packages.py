"""Packages of two registries as plain archives: fetched by version, checked, unpacked, never installed."""

from __future__ import annotations

import fnmatch
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.errors import ModelError
from stages.storage import sha256_file

_MAX_BYTES = 2 << 30
_DOWNLOAD_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Package:
    """What to fetch: `fetcher` is `pip` or `npm`, `archive` the file's name, and `sha256` is of that file."""

    name: str
    version: str
    fetcher: str
    archive: str
    sha256: str


def download(package: Package, folder: Path) -> Path:
    """Fetch a package's archive into a folder, with the registry's own client and its settings; nothing in it is run.

    Raises:
        ModelError: the client is missing, has no such archive or is too slow, or the archive has another checksum.
    """
    subject = f"{package.name} {package.version}"
    remedy = f"check the network and {package.fetcher}'s registry settings, or run this once where there is a network"
    try:
        done = subprocess.run(
            _command(package, folder), capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise ModelError(
            f"{subject}: can't be downloaded: {package.fetcher} is not installed", f"install {package.fetcher}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{subject}: the download took over {_DOWNLOAD_SECONDS} s", remedy) from error
    archive = folder / package.archive
    if done.returncode or not archive.exists():
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ModelError(f"{subject}: can't be downloaded: {words[-1] if words else 'no reason given'}", remedy)
    digest = sha256_file(archive)
    if digest != package.sha256:
        raise ModelError(
            f"{subject}: {package.archive} has SHA-256 {digest}, not {package.sha256}", "do not use it; report it"
        )
    return archive


def _command(package: Package, folder: Path) -> list[str]:
    if package.fetcher == "npm":
        options = ["--ignore-scripts", "--loglevel=error", f"--pack-destination={folder}"]
        return ["npm", "pack", *options, f"{package.name}@{package.version}"]
    if package.archive.endswith(".whl"):
        options = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
        return [sys.executable, "-m", "pip", "download", *options, f"{package.name}=={package.version}"]
    script = str(Path(__file__).with_name("pip_sdist.py"))
    return [sys.executable, script, package.name, package.version, str(folder)]


def unpack(archive: Path, folder: Path, wanted: Sequence[str] = ("*",)) -> None:
    """Unpack the regular files of a wheel, or of a source or npm archive without its top folder.

    Args:
        wanted: patterns of paths, `*` also matching slashes; other files are left out.

    Raises:
        ModelError: a file would lie outside `folder`, or they are too large together.
    """
    folder.mkdir()
    total = 0
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16) or not _is_wanted(info.filename, wanted):
                    continue
                total += info.file_size
                target = _target(archive, folder, PurePosixPath(info.filename), total)
                with wheel.open(info) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
        return
    with tarfile.open(archive) as source_archive:
        for member in source_archive:
            relative = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if not member.isreg() or not _is_wanted(str(relative), wanted):
                continue
            content = source_archive.extractfile(member)
            assert content is not None  # it is a regular file
            total += member.size
            target = _target(archive, folder, relative, total)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)


def _is_wanted(path: str, wanted: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in wanted)


def _target(archive: Path, folder: Path, name: PurePosixPath, total: int) -> Path:
    if name.is_absolute() or ".." in name.parts or not name.parts or "\\" in str(name):
        raise ModelError(f"{archive.name}: holds a file outside its folder: {name}", "do not use it; report it")
    if total > _MAX_BYTES:
        raise ModelError(f"{archive.name}: unpacks to more than {_MAX_BYTES} bytes", "do not use it; report it")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
