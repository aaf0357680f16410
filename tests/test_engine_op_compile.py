"""The op is compiled once for a user and a TensorFlow, and only a library that is whole is loaded."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.engine_op import compile as op_compiler
from stages.errors import EngineOpError

SLEEPY = """#!/bin/sh
# Stands for a compiler: says its version, and makes a file after a while.
[ "$1" = --version ] && { echo "sleepy 1"; exit 0; }
echo compiled >> "$(dirname "$0")/calls"
sleep 1
while [ "$1" != -o ]; do shift; done
echo library > "$2"
"""
FAILING = """#!/bin/sh
[ "$1" = --version ] && { echo "failing 1"; exit 0; }
echo "first line"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo "noise $i"; done
echo "engine_call.cc:1: error: no such header" >&2
exit 3
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRAFTRT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def as_compiler(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = folder / "compiler"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


def compilations(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_library_is_kept_for_this_user_alone(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_compiler(SLEEPY, tmp_path, monkeypatch)
    library = op_compiler.compiled_library()
    assert library.parent == cache / "engine_op"
    assert library.parent.stat().st_mode & 0o777 == 0o700
    assert op_compiler.compiled_library() == library
    assert compilations(tmp_path) == 1
    assert not [path for path in library.parent.iterdir() if path.is_dir()]


def test_damaged_library_is_compiled_again(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_compiler(SLEEPY, tmp_path, monkeypatch)
    library = op_compiler.compiled_library()
    library.write_text("damaged")
    assert op_compiler.compiled_library().read_text() == "library\n"
    assert compilations(tmp_path) == 2


def test_another_compiler_compiles_anew(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = as_compiler(SLEEPY, tmp_path, monkeypatch)
    first = op_compiler.compiled_library()
    compiler.write_text(SLEEPY.replace("sleepy 1", "sleepy 2"))
    assert op_compiler.compiled_library() != first


def test_two_processes_compile_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_compiler(SLEEPY, tmp_path, monkeypatch)
    # The package's own import would compile: only the module is run, under its name.
    program = """
import runpy, sys, types
package = types.ModuleType("stages.engine_op"); package.__path__ = ["stages/engine_op"]
sys.modules["stages.engine_op"] = package
from stages.engine_op.compile import compiled_library
print(compiled_library())
"""
    root = Path(__file__).parent.parent

    def run(_: int) -> str:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
        return done.stdout

    with ThreadPoolExecutor(2) as pool:
        assert len(set(pool.map(run, range(2)))) == 1
    assert compilations(tmp_path) == 1


def test_failure_shows_the_compilers_last_lines(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_compiler(FAILING, tmp_path, monkeypatch)
    with pytest.raises(
        EngineOpError, match=r"(?s)exit code 3.*noise 16\nengine_call.cc:1: error: no such header"
    ) as found:
        op_compiler.compiled_library()
    assert "first line" not in str(found.value)
    assert "CXX" in found.value.remedy
    assert not list(cache.rglob("*.so"))


def test_missing_compiler_is_said_with_a_remedy(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineOpError, match="no C") as found:
        op_compiler.compiled_library()
    assert "install g++" in found.value.remedy
    monkeypatch.setenv("CXX", "absent-compiler -O1")
    with pytest.raises(EngineOpError, match="CXX is absent-compiler"):
        op_compiler.compiled_library()


def test_cache_that_is_a_link_is_refused(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(mode=0o700)
    (tmp_path / "theirs").mkdir()
    (cache / "engine_op").symlink_to(tmp_path / "theirs")
    with pytest.raises(EngineOpError, match="is a link"):
        op_compiler.compiled_library()
