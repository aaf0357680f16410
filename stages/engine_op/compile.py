"""Compiles the op against the installed TensorFlow, once a user, and keeps the result."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stages.errors import ArtifactError, EngineOpError
from stages.userdir import user_cache_dir

log = logging.getLogger(__name__)

_SOURCES = (
    "engine_call.cc",
    "native_segment.h",
    "counters.h",
    "graphs.h",
    "cuda_driver.h",
    "device_memory.h",
    "runtime_lease.h",
    "runtime_abi.h",
)
_FLAGS = ("-O2", "-DNDEBUG", "-fPIC", "-shared", "-fvisibility=hidden", "-w")
_TIMEOUT_SECONDS = 900
_LINES_SHOWN = 15


def compiled_library() -> Path:
    """The op's shared library, compiled now if this user has none for this TensorFlow.

    `CXX` names another compiler, with options if need be; `GRAFTRT_CACHE_DIR` another cache. `GRAFTRT_ENGINE_OP` names
    a library that was compiled elsewhere, from these sources and for this TensorFlow: for hosts without a compiler.

    Raises:
        EngineOpError: there is no compiler, it failed, or the cache is not this user's alone.
    """
    if prebuilt := os.environ.get("GRAFTRT_ENGINE_OP"):
        if not Path(prebuilt).is_file():
            raise EngineOpError(f"GRAFTRT_ENGINE_OP is {prebuilt}, which is no file", "unset it to compile the op here")
        return Path(prebuilt)
    folder = cache_folder()
    command = compiler()
    flags = [*_FLAGS, *_tensorflow_flags()]
    library = folder / f"engine_call-{_key(command, flags)}.so"
    checksum = library.with_suffix(".sha256")
    with _locked(library.with_suffix(".lock")):
        if library.exists() and checksum.exists():
            if hashlib.sha256(library.read_bytes()).hexdigest() == checksum.read_text():
                return library
            log.warning("%s is damaged; compiling it again", library)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / library.name
            _compile(command, flags, fresh)
            (Path(scratch) / "sha256").write_text(hashlib.sha256(fresh.read_bytes()).hexdigest())
            (Path(scratch) / "sha256").rename(checksum)
            fresh.rename(library)
    return library


def cache_folder() -> Path:
    """The folder for compiled libraries, made if need be; it is this user's alone (see `user_cache_dir`).

    Raises:
        EngineOpError: it can't be made, or is someone else's.
    """
    try:
        return user_cache_dir("engine_op")
    except ArtifactError as error:
        raise EngineOpError(error.problem, error.remedy) from error


def compiler() -> list[str]:
    """The command of the C++ compiler: `CXX`, or the first of g++, c++ and clang++.

    Raises:
        EngineOpError: there is none.
    """
    remedy = "install g++ (Debian, Ubuntu: apt-get install g++), or set CXX to a C++17 compiler"
    if chosen := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(chosen[0]) is None:
            raise EngineOpError(f"CXX is {chosen[0]}, which is not an executable", remedy)
        return chosen
    for name in ("g++", "c++", "clang++"):
        if (path := shutil.which(name)) is not None:
            return [path]
    raise EngineOpError("there is no C++ compiler, and the op must be compiled for this TensorFlow", remedy)


def _tensorflow_flags() -> list[str]:
    import tensorflow as tf

    return [*tf.sysconfig.get_compile_flags(), *tf.sysconfig.get_link_flags()]


def _key(command: list[str], flags: list[str]) -> str:
    import tensorflow as tf

    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update(name.encode() + (Path(__file__).parent / name).read_bytes())
    build = (tf.version.VERSION, tf.version.GIT_VERSION, tf.version.COMPILER_VERSION, platform.machine())
    for part in (*build, *command, _compiler_version(command), *flags):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _compiler_version(command: list[str]) -> str:
    return _run([*command, "--version"], timeout_seconds=60).stdout


def _compile(command: list[str], flags: list[str], library: Path) -> None:
    """Write `library`.

    Raises:
        EngineOpError: the compiler failed; with its last lines.
    """
    log.info("compiling the EngineCall op with %s (about 10 s, once)", command[0])
    source = Path(__file__).parent / _SOURCES[0]
    # Libraries come after the source that needs them.
    ended = _run([*command, str(source), *flags, "-o", str(library)], _TIMEOUT_SECONDS)
    if ended.returncode != 0:
        lines = "\n".join(ended.stdout.splitlines()[-_LINES_SHOWN:])
        raise EngineOpError(
            f"{shlex.join(command)} can't compile the op (exit code {ended.returncode}):\n{lines}",
            "use g++ 9 or newer, or clang++ 10 or newer; CXX chooses it",
        )


def _run(command: list[str], timeout_seconds: int) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=timeout_seconds, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineOpError(f"{command[0]} can't be run: {error}", "set CXX to another C++ compiler") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` between processes and threads."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
