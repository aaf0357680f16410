"""The engine cache: what hits, what misses, and what is never trusted."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stages.backends.base import BuildOptions, BuildOutcome
from stages.backends.isolated import Worker
from stages.enginecache import EngineCache, compile_region, engine_key
from stages.errors import ArtifactError
from stages.storage import sha256_file
from stages.userdir import user_cache_dir
from tests import onnx_models as tiny

OPTIONS = BuildOptions(profiles=(tiny.conv_profile(1, 2, 4),))


class CountingWorker(Worker):
    """A worker that says how often it has really built."""

    builds = 0

    def build(self, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
        self.builds += 1
        return super().build(model, plan, options)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("GRAFTRT_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tiny.conv(), tmp_path / "m.onnx")


Compile = Callable[..., BuildOutcome]


@pytest.fixture(scope="module")
def worker() -> object:
    pytest.importorskip("tensorrt_rtx")
    with CountingWorker("tensorrt_rtx") as worker:
        yield worker


@pytest.fixture
def compile_(worker: CountingWorker, model: Path, tmp_path: Path) -> Compile:
    worker.builds = 0

    def run(options: BuildOptions = OPTIONS, model: Path = model, cache: bool = True) -> BuildOutcome:
        plan = tmp_path / "plan"
        plan.unlink(missing_ok=True)
        return compile_region(worker, model, sha256_file(model), options, plan, cache=EngineCache() if cache else None)

    return run


def entries(folder: Path) -> set[str]:
    return {file.suffix for file in (folder / "engines").iterdir()}


def test_the_same_inputs_hit_without_a_build(compile_: Compile, worker: CountingWorker, tmp_path: Path) -> None:
    first = compile_()
    assert first.built, first.failure
    assert not first.cached
    digest = sha256_file(tmp_path / "plan")
    second = compile_()
    assert second.built
    assert second.cached
    assert second.seconds == first.seconds
    assert sha256_file(tmp_path / "plan") == digest
    assert worker.builds == 1


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "tf32"},
        {"profiles": (tiny.conv_profile(1, 2, 5),)},
        {"workspace_mib": 64},
        {"capabilities": ("8.6",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_options_miss(compile_: Compile, worker: CountingWorker, change: dict[str, object]) -> None:
    compile_()
    other = compile_(replace(OPTIONS, **change))  # type: ignore[arg-type]
    assert other.built, other.failure
    assert not other.cached
    assert worker.builds == 2
    assert compile_(replace(OPTIONS, **change)).cached  # type: ignore[arg-type]


def test_other_weights_miss(compile_: Compile, worker: CountingWorker, tmp_path: Path) -> None:
    compile_()
    proto = tiny.conv()
    proto.graph.initializer[0].raw_data = tiny.weights(8, 3, 3, 3, seed=9).tobytes()
    assert not compile_(model=tiny.save(proto, tmp_path / "other.onnx")).cached
    assert worker.builds == 2


def test_back_end_and_version_are_part_of_the_key() -> None:
    keys = {engine_key(b, v, d, OPTIONS) for b in ("tensorrt", "tensorrt_rtx") for v in ("1", "2") for d in ("a", "b")}
    assert len(keys) == 8


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone", "record", "no record"])
def test_a_damaged_entry_is_built_again(
    compile_: Compile, worker: CountingWorker, cache_folder: Path, tmp_path: Path, damage: str
) -> None:
    compile_()
    (plan,) = (cache_folder / "engines").glob("*.plan")
    record = plan.with_suffix(".json")
    data = plan.read_bytes()
    match damage:
        case "flipped":
            plan.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "truncated":
            plan.write_bytes(data[: len(data) // 2])
        case "gone":
            plan.unlink()
        case "record":
            record.write_text('{"sha256": ')
        case "no record":
            record.unlink()
    again = compile_()
    assert again.built
    assert not again.cached
    assert worker.builds == 2
    assert sha256_file(tmp_path / "plan") == sha256_file(plan)
    assert compile_().cached


def test_a_damaged_entry_is_removed(compile_: Compile, cache_folder: Path, tmp_path: Path) -> None:
    compile_()
    (plan,) = (cache_folder / "engines").glob("*.plan")
    plan.write_bytes(b"other")
    assert EngineCache().fetch(plan.stem, tmp_path / "fetched") is None
    assert not entries(cache_folder)
    assert not list(tmp_path.glob("*fetched*"))


def test_without_a_cache_every_call_builds(compile_: Compile, worker: CountingWorker, cache_folder: Path) -> None:
    compile_(cache=False)
    compile_(cache=False)
    assert worker.builds == 2
    assert not cache_folder.exists()


def test_a_failed_build_is_not_kept(compile_: Compile, worker: CountingWorker, cache_folder: Path) -> None:
    assert not compile_(BuildOptions()).built
    assert not compile_(BuildOptions()).built
    assert worker.builds == 2
    assert not entries(cache_folder)


def test_onnx_runtime_s_copies_of_the_model_are_not_kept(model: Path, tmp_path: Path, cache_folder: Path) -> None:
    with Worker("onnxruntime") as worker:
        outcome = compile_region(worker, model, "digest", OPTIONS, tmp_path / "plan.onnx", cache=EngineCache())
    assert outcome.built
    assert not entries(cache_folder)


def seconds(known: BuildOutcome | None) -> float | None:
    return known and known.seconds


def store(cache: EngineCache, key: str, folder: Path, size: int, used: float) -> None:
    plan = folder / "stored"
    plan.write_bytes(os.urandom(size))
    cache.store(key, plan, backend="b", version="1", digest="d", options=OPTIONS, outcome=BuildOutcome(True, 1.0))
    os.utime(cache.folder / f"{key}.json", (used, used))


def test_the_entries_used_longest_ago_make_room(tmp_path: Path) -> None:
    cache = EngineCache(limit_bytes=250)
    store(cache, "old", tmp_path, 100, used=1000)
    store(cache, "older", tmp_path, 100, used=500)
    assert seconds(cache.fetch("older", tmp_path / "out")) == 1.0, "a hit counts as a use"
    store(cache, "new", tmp_path, 100, used=2000)
    assert {file.stem for file in cache.folder.glob("*.plan")} == {"older", "new"}
    assert {file.stem for file in cache.folder.glob("*.json")} == {"older", "new"}


def test_an_entry_larger_than_the_cache_still_serves_until_the_next(tmp_path: Path) -> None:
    cache = EngineCache(limit_bytes=50)
    store(cache, "large", tmp_path, 100, used=1000)
    assert seconds(cache.fetch("large", tmp_path / "out")) == 1.0
    store(cache, "small", tmp_path, 10, used=2000)
    assert cache.fetch("large", tmp_path / "out") is None
    assert seconds(cache.fetch("small", tmp_path / "out")) == 1.0


def test_an_unwritable_cache_does_not_lose_the_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache()
    plan = tmp_path / "plan"
    plan.write_bytes(b"plan")
    # Mode bits would not stop root; a folder that is gone stops everyone.
    cache.folder.rmdir()
    cache.store("key", plan, backend="b", version="1", digest="d", options=OPTIONS, outcome=BuildOutcome(True, 1.0))
    assert "can't be written" in caplog.text
    assert plan.read_bytes() == b"plan"


def test_cache_folders_are_the_user_s_alone(cache_folder: Path) -> None:
    cache_folder.mkdir(mode=0o755)
    folder = user_cache_dir("engines")
    assert folder == cache_folder / "engines"
    for made in (cache_folder, folder):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_cache_folder_that_is_a_link_is_refused(cache_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache_folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="GRAFTRT_CACHE_DIR"):
        EngineCache()


def test_a_cache_folder_of_another_user_is_refused(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_folder.mkdir()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(ArtifactError, match=f"belongs to user {owner}"):
        EngineCache()


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFTRT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache_dir() == tmp_path / "xdg" / "graftrt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache_dir("engines") == tmp_path / "home" / ".cache" / "graftrt" / "engines"
