"""Engines built once per user: a cache addressed by everything that a plan depends on.

Under `user_cache_dir("engines")`, entry `<key>.plan` is the plan and `<key>.json` says what it is and its SHA-256; an
entry whose plan does not match is a miss and removed. Files are written beside and renamed, so that several
processes and threads may share the cache. Without pickle: an entry is data, which the back end's own deserialisation judges.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from stages import recordjson
from stages.backends.base import BuildOptions, BuildOutcome, partial_path
from stages.backends.isolated import Worker
from stages.storage import sha256_file
from stages.userdir import user_cache_dir

_FORMAT_VERSION = 2
"""Part of every key: to be raised when plans come out differently from the same facts."""
_LIMIT_BYTES = 10 << 30

log = logging.getLogger(__name__)


def engine_key(backend: str, version: str, digest: str, options: BuildOptions) -> str:
    """The address (hex SHA-256) of what `backend` at `version` makes of the ONNX model with SHA-256 `digest`."""
    facts = {
        "format": _FORMAT_VERSION,
        "backend": backend,
        "version": version,
        "digest": digest,
        "options": asdict(options),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class EngineCache:
    """The calling user's engines.

    Args:
        limit_bytes: size of all plans together; beyond it the entries used longest ago are removed.

    Raises:
        ArtifactError: the cache folder can't be made or is not the user's own.
    """

    def __init__(self, limit_bytes: int = _LIMIT_BYTES) -> None:
        self.folder = user_cache_dir("engines")
        self.limit_bytes = limit_bytes
        self._making: dict[str, threading.Lock] = {}

    def making(self, key: str) -> threading.Lock:
        """To be held from looking for an entry to storing it: who asks for the same engine meanwhile then finds it, as
        the second of two equal regions does that are built one after the other."""
        return self._making.setdefault(key, threading.Lock())

    def fetch(self, key: str, plan: Path) -> BuildOutcome | None:
        """Copy the entry to `plan` and return what is known of its build; None on a miss."""
        sidecar = self.folder / f"{key}.json"
        try:
            record = json.loads(sidecar.read_text())
            sha256 = str(record["sha256"])
            known = {"built": True, "cached": True, "seconds": record["build_seconds"], "network": record["network"]}
            outcome = recordjson.decode(BuildOutcome, known, Path())
            partial = partial_path(plan)
            shutil.copyfile(self.folder / f"{key}.plan", partial)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            self._remove(key, "its record can't be read")
            return None
        # The copy is checked, not the entry: nothing can change it in between.
        if sha256_file(partial) != sha256:
            partial.unlink()
            self._remove(key, "its plan has another SHA-256 than was recorded")
            return None
        partial.replace(plan)
        with contextlib.suppress(OSError):
            os.utime(sidecar)
        return outcome

    def store(
        self,
        key: str,
        plan: Path,
        *,
        backend: str,
        version: str,
        digest: str,
        options: BuildOptions,
        outcome: BuildOutcome,
    ) -> None:
        """Add `plan`, then make room. A cache that can't be written is a warning: the plan itself is there."""
        record = {
            "backend": backend,
            "version": version,
            "digest": digest,
            "options": asdict(options),
            "sha256": sha256_file(plan),
            "bytes": plan.stat().st_size,
            "build_seconds": outcome.seconds,
            "network": [asdict(layer) for layer in outcome.network],
            "created": time.time(),
        }
        try:
            with self._beside(f"{key}.plan") as partial:
                shutil.copyfile(plan, partial)
            with self._beside(f"{key}.json") as partial:
                partial.write_text(json.dumps(record, indent=1) + "\n")
            self._make_room(keep=key)
        except OSError as error:
            log.warning("build: the engine cache %s can't be written: %s", self.folder, error.strerror)

    @contextlib.contextmanager
    def _beside(self, name: str) -> Iterator[Path]:
        handle, path = tempfile.mkstemp(prefix=f".{name}.", suffix=".partial", dir=self.folder)
        os.close(handle)
        try:
            yield Path(path)
            Path(path).replace(self.folder / name)
        finally:
            Path(path).unlink(missing_ok=True)

    def _remove(self, key: str, reason: str) -> None:
        log.warning("build: removed engine %s from the cache: %s", key[:12], reason)
        self._drop(key)

    def _drop(self, key: str) -> None:
        # The record first: a plan without one is a miss, and room made for.
        (self.folder / f"{key}.json").unlink(missing_ok=True)
        (self.folder / f"{key}.plan").unlink(missing_ok=True)

    def _make_room(self, keep: str) -> None:
        entries: list[tuple[float, int, str]] = []
        for plan in self.folder.glob("*.plan"):
            # Another process may be removing the same entry.
            with contextlib.suppress(FileNotFoundError):
                status = plan.stat()
                used = status.st_mtime
                with contextlib.suppress(FileNotFoundError):
                    used = plan.with_suffix(".json").stat().st_mtime
                entries.append((used, status.st_size, plan.stem))
        total = sum(size for _, size, _ in entries)
        for _, size, key in sorted(entries):
            if total <= self.limit_bytes:
                return
            if key != keep:
                self._drop(key)
                total -= size


def compile_region(
    worker: Worker, model: Path, digest: str, options: BuildOptions, plan: Path, *, cache: EngineCache | None
) -> BuildOutcome:
    """`worker.build`, unless the cache holds the result; a new result is put there.

    ONNX Runtime's plans are copies of the model and are not cached.

    Args:
        digest: SHA-256 of `model` as compiled, external data included: a model converted to fp16 has its own.
        cache: None builds in any case.

    Raises:
        BackendError: the worker's library is missing or does not load.
    """
    backend, version = worker.backend.name, worker.version
    if cache is None or worker.backend.suffix == ".onnx":
        return worker.build(model, plan, options)
    key = engine_key(backend, version, digest, options)
    with cache.making(key):
        known = cache.fetch(key, plan)
        if known is not None:
            return known
        outcome = worker.build(model, plan, options)
        if outcome.built:
            cache.store(key, plan, backend=backend, version=version, digest=digest, options=options, outcome=outcome)
        return outcome
