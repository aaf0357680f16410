"""How far long work has come: what is reported, who hears it, and what a terminal shows."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import numpy as np
import pytest

from fixtures import vision
from pipeline import Config, convert
from pipeline.progress import ConsoleProgress
from stages import build, export, freeze, progress, split
from stages.artifacts import Partition, ShapeRange
from stages.backends.base import BuildOptions
from stages.backends.isolated import Worker
from stages.backends.phases import Phases

ESCAPE = "\x1b"
COLOUR = re.compile("\x1b\\[[0-9;]*m")
SIZES = ((ShapeRange("input_0", (1, 16, 16, 3), (2, 16, 16, 3), (4, 16, 16, 3)),),)


class Heard(list[tuple[float, str]]):
    """A listener that keeps what it hears."""

    def __call__(self, share: float, words: str) -> None:
        self.append((share, words))

    @property
    def shares(self) -> list[float]:
        return [share for share, _ in self]


@pytest.fixture(scope="module")
def partition(tmp_path_factory: pytest.TempPathFactory) -> Partition:
    folder = tmp_path_factory.mktemp("stages")
    exported = export.export(freeze.freeze(vision.small_cnn(), folder / "freeze"), folder / "export")
    return split.split(exported, folder / "split", options=split.SplitOptions("onnxruntime"))


def test_parts_add_up_and_parts_of_parts_count_as_much_as_their_part() -> None:
    heard = Heard()
    with progress.heard_by(heard):
        tally = progress.Tally(10)
        with tally.part(4, "first"):
            progress.report(1, 2, "half")
        with tally.part(6, "second"):
            inner = progress.Tally(2)
            with inner.part(1, "inside"):
                pass
    assert heard == [
        (0.0, "first"),
        (0.2, "first: half"),
        (0.4, "first"),
        (0.4, "second"),
        (0.4, "second: inside"),
        (0.7, "second: inside"),
        (1.0, "second"),
    ]


def test_parts_that_run_at_the_same_time_add_up() -> None:
    heard = Heard()
    both = threading.Barrier(2, timeout=10)

    def work(tally: progress.Tally) -> None:
        with tally.part(1, ""):
            progress.report(1, 2)
            both.wait()

    with progress.heard_by(heard), ThreadPoolExecutor(2) as threads:
        tally = progress.Tally(2)
        for future in [threads.submit(copy_context().run, work, tally) for _ in range(2)]:
            future.result()
    assert set(heard.shares) == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_listeners_hear_only_their_own_context() -> None:
    mine, theirs = Heard(), Heard()

    def other() -> None:
        with progress.heard_by(theirs):
            progress.report(1, 4)

    with progress.heard_by(mine):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        progress.report(1, 2)
    progress.report(1, 1)
    assert (mine.shares, theirs.shares) == ([0.5], [0.25])


def test_inner_phases_of_a_build_fill_the_step_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.backends.phases._SECONDS_BETWEEN_REPORTS", 0)
    heard = Heard()
    phases = Phases(heard)
    phases.start("Building", None, 4)
    phases.step("Building", 0)
    phases.start("Timing", "Building", 2)
    phases.step("Timing", 0)
    phases.finish("Timing")
    phases.start("Timing", "Building", 2)  # once again: the share does not fall
    phases.step("Building", 1)
    phases.finish("Building")
    phases.step("Building", 3)  # too late
    assert heard.shares == [0.0, 0.25, 0.25, 0.375, 0.375, 0.5]
    assert heard[3] == (0.375, "Timing")


def test_phases_of_one_name_within_one_another_are_no_riddle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.backends.phases._SECONDS_BETWEEN_REPORTS", 0)
    heard = Heard()
    phases = Phases(heard)
    phases.start("A", None, 2)
    phases.start("B", "A", 2)
    phases.start("B", "B", 2)
    phases.start("A", "B", 2)
    phases.step("A", 1)
    phases.finish("A")
    phases.start("C", "nobody", 1)
    phases.step("C", 0)
    assert heard.shares == sorted(heard.shares)
    assert heard.shares[-1] <= 1.0


def test_a_build_in_a_child_tells_its_phases_and_nothing_without_a_listener(
    partition: Partition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (region,) = partition.regions
    passed: list[bytes] = []
    from stages.backends import isolated

    decode = isolated.messages.decode_report
    monkeypatch.setattr(isolated.messages, "decode_report", lambda line: passed.append(line) or decode(line))
    heard = Heard()
    with Worker("tensorrt_rtx") as worker:
        assert worker.build(region.model, tmp_path / "quiet.plan", BuildOptions(profiles=SIZES)).built
        assert not passed
        with progress.heard_by(heard):
            assert worker.build(region.model, tmp_path / "told.plan", BuildOptions(profiles=SIZES)).built
    assert heard
    assert heard[0][1] == "Building engine"
    assert heard.shares == sorted(heard.shares)
    assert len(passed) == len(heard)


@pytest.mark.parametrize("stage", ["export", "split", "build"])
def test_a_stage_reports_until_all_is_done(stage: str, partition: Partition, tmp_path: Path) -> None:
    heard = Heard()
    frozen = partition.frozen
    run: dict[str, Callable[[], object]] = {
        "export": lambda: export.export(frozen, tmp_path / "export"),
        "split": lambda: split.split(
            export.export(frozen, tmp_path / "export"), tmp_path / "split", options=split.SplitOptions("onnxruntime")
        ),
        "build": lambda: build.build(partition, tmp_path / "build", options=build.EngineOptions(("onnxruntime",))),
    }
    with progress.heard_by(heard):
        run[stage]()
    assert (heard.shares[0], heard.shares[-1]) == (0.0, 1.0)
    assert any("ops translated" in words for _, words in heard) or stage == "build"
    assert any(words.startswith("region_0") for _, words in heard) or stage == "export"


def on_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[ConsoleProgress], object], **environment: str
) -> str:
    """What a terminal gets that standard error is."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100", **environment}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = os.openpty()
    received: list[bytes] = []

    def read() -> None:
        while True:
            try:
                block = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                return
            if not block:
                return
            received.append(block)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        use(ConsoleProgress())
    reader.join(10)
    os.close(ours)
    return b"".join(received).decode()


def small_conversion(tmp_path: Path) -> Callable[[ConsoleProgress], object]:
    def use(console: ConsoleProgress) -> None:
        convert(vision.small_cnn(), tmp_path / "out", Config(backend="onnxruntime"), progress=console)

    return use


def test_a_terminal_shows_bars_and_keeps_a_line_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = on_terminal(tmp_path, monkeypatch, small_conversion(tmp_path))
    assert "━" in shown
    assert COLOUR.search(shown)
    assert "sample 2, stitched" in shown
    kept = re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", shown).replace("\r", "\n").splitlines()
    stages = [line.split()[0] for line in kept if re.fullmatch(r"\w+ +\d+\.\d s", line)]
    assert stages == ["freeze", "export", "split", "build", "stitch", "verify"]


def test_no_color_means_no_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(console: ConsoleProgress) -> None:
        with console.stage("build"):
            progress.report(1, 2, "half")

    assert "half" in on_terminal(tmp_path, monkeypatch, use)
    shown = on_terminal(tmp_path, monkeypatch, use, NO_COLOR="1")
    assert "half" in shown
    assert not [code for code in COLOUR.findall(shown) if re.search(r"\b(3[0-7]|38|9[0-7])\b", code)]


def test_elsewhere_there_are_lines_only_and_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    console = ConsoleProgress()
    with console.stage("build"):
        assert progress.listener() is None
    console.taken_over("split", 2.0)
    assert re.fullmatch(r"build +\d\.\d s\nsplit +2\.0 s, done before\n", written.getvalue())
    assert ESCAPE not in written.getvalue()


def test_calibration_and_the_search_for_precisions_are_part_of_building(tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []
    random = np.random.default_rng(0)
    samples = [{"image": random.random((2, 16, 16, 3), np.float32)} for _ in range(3)]
    config = Config("auto", "onnxruntime", samples=samples, max_error=0.1)
    with progress.heard_by(lambda share, words: heard.append((share, words))):
        convert(vision.small_cnn(), tmp_path / "out", config)
    words = [said for _, said in heard]
    assert [w for w in words if "sample 2 of 3" in w and w.startswith("calibration")]
    assert [w for w in words if w.startswith("precisions: region_0")]
    start = next(n for n, said in enumerate(words) if said.startswith("calibration"))
    end = max(n for n, said in enumerate(words) if said.startswith("region_0"))
    shares = [share for share, _ in heard[start : end + 1]]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
