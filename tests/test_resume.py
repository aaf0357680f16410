"""Conversions that were interrupted: nothing broken is left, and the next one goes on from what was finished."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import vision
from pipeline import Config, Report, convert
from pipeline.cli import main
from pipeline.keys import conversion_key, key_of, samples_key
from pipeline.resume import finished, partial_folder
from stages.errors import ArtifactError, SplitError, VerifyError
from stages.split import SplitOptions
from tests.test_architecture import ROOT

STAGES = ("freeze", "export", "split", "build", "stitch")
SETTINGS = Config(backend="onnxruntime")


@dataclass
class Witness:
    """Sees which stages run and which are taken over, and interrupts where it is told to."""

    interrupt_at: str = ""
    ran: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if name == self.interrupt_at:
            raise KeyboardInterrupt
        yield
        self.ran.append(name)

    def taken_over(self, name: str, seconds: float) -> None:
        assert seconds > 0
        self.kept.append(name)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "cnn.keras"
    vision.small_cnn().save(path)
    return path


def interrupted(model: Path, out: Path, at: str, config: Config = SETTINGS) -> Witness:
    witness = Witness(at)
    with pytest.raises(KeyboardInterrupt):
        convert(model, out, config, progress=witness)
    assert not out.exists()
    return witness


def resumed(model: Path, out: Path, config: Config = SETTINGS) -> Witness:
    witness = Witness()
    convert(model, out, config, progress=witness)
    assert not partial_folder(out).exists()
    return witness


def answers(out: Path) -> np.ndarray:
    import stages.engine_op

    stages.engine_op.load()
    function = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
    ((name, _),) = function.structured_input_signature[1].items()
    (output,) = function(**{name: tf.constant(vision.small_cnn_inputs(3)["image"])}).values()
    return np.asarray(output)


def without_times(report: Report) -> Report:
    engines = [tuple(replace(e, build_seconds=0.0) for e in region.engines) for region in report.regions]
    regions = tuple(replace(r, engines=e) for r, e in zip(report.regions, engines, strict=True))
    return replace(report, regions=regions, stages=())


def test_each_run_goes_on_where_the_one_before_was_interrupted(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number, stage in enumerate((*STAGES[1:], "verify"), start=1):
        witness = interrupted(model, out, stage)
        assert witness.kept == list(STAGES[: number - 1])
        assert witness.ran == [STAGES[number - 1]]
        assert finished(out) == STAGES[:number]
    last = resumed(model, out)
    assert (last.kept, last.ran) == (list(STAGES), ["verify"])
    assert list(tmp_path.iterdir()) == [out]
    whole = convert(model, tmp_path / "whole", SETTINGS)
    report = Report.read(out / "report.json")
    assert without_times(report) == without_times(whole)
    assert [stage.name for stage in report.stages] == [*STAGES, "verify"]
    assert np.array_equal(answers(out), answers(tmp_path / "whole"))


def test_only_what_depends_on_a_changed_setting_is_made_again(model: Path, tmp_path: Path) -> None:
    interrupted(model, tmp_path / "out", "verify")
    coarser = resumed(model, tmp_path / "out", replace(SETTINGS, precision="fp16"))
    assert (coarser.kept, coarser.ran) == (["freeze", "export", "split"], ["build", "stitch", "verify"])
    assert Report.read(tmp_path / "out/report.json").precision == "fp16"


def test_after_a_failed_verification_a_larger_error_is_enough(model: Path, tmp_path: Path) -> None:
    strict = replace(SETTINGS, precision="fp16", max_error=1e-12)
    with pytest.raises(VerifyError):
        convert(model, tmp_path / "out", strict)
    assert resumed(model, tmp_path / "out", replace(strict, max_error=1e-2)).kept == list(STAGES)


def test_another_model_starts_anew(model: Path, tmp_path: Path) -> None:
    interrupted(model, tmp_path / "out", "export")
    other = tmp_path / "other.keras"
    vision.small_cnn().save(other)
    witness = interrupted(other, tmp_path / "out", "export")
    assert (witness.kept, witness.ran) == ([], ["freeze"])
    other.write_bytes(other.read_bytes() + b"\0")
    assert interrupted(other, tmp_path / "out", "export").kept == []
    assert interrupted(other, tmp_path / "out", "export").kept == ["freeze"]


def test_a_damaged_or_half_written_stage_is_made_again(model: Path, tmp_path: Path) -> None:
    interrupted(model, tmp_path / "out", "split")
    partial = partial_folder(tmp_path / "out")
    (partial / "export/artifact.json").write_text("{")
    (partial / ".split.abc.partial").mkdir()  # as after SIGKILL
    (partial / "split").mkdir()
    witness = interrupted(model, tmp_path / "out", "build")
    assert (witness.kept, witness.ran) == (["freeze"], ["export", "split"])
    assert not (partial / ".split.abc.partial").exists()
    (partial / "resume.json").write_text("[1]")
    assert interrupted(model, tmp_path / "out", "export").kept == []


def test_a_model_in_memory_and_no_resume_leave_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(vision.small_cnn(), tmp_path / "out", SETTINGS, progress=Witness("export"))
    assert list(tmp_path.iterdir()) == []
    interrupted(model, tmp_path / "out", "split")
    witness = interrupted(model, tmp_path / "out", "split", replace(SETTINGS, resume=False))
    assert witness.ran == ["freeze", "export"]
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_leaves_nothing_new_and_takes_nothing_away(model: Path, tmp_path: Path) -> None:
    wrong = replace(SETTINGS, samples=[{"nothing": np.zeros(1, np.float32)}])
    with pytest.raises(SplitError):
        convert(model, tmp_path / "out", wrong)
    assert list(tmp_path.iterdir()) == []
    interrupted(model, tmp_path / "out", "split")
    with pytest.raises(SplitError):
        convert(model, tmp_path / "out", wrong)
    assert finished(tmp_path / "out") == ("freeze",) or finished(tmp_path / "out") == ("freeze", "export")


def test_two_conversions_to_one_folder_do_not_meet(model: Path, tmp_path: Path) -> None:
    interrupted(model, tmp_path / "out", "export")
    with (partial_folder(tmp_path / "out") / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="another conversion is at work"):
            convert(model, tmp_path / "out", SETTINGS)
        assert finished(tmp_path / "out") == ()
    assert finished(tmp_path / "out") == ("freeze",)


def test_a_folder_of_somebody_elses_is_left_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "out.partial"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("mine")
    assert main(["convert", str(model), str(tmp_path / "out"), "--backend", "onnxruntime"]) == 1
    assert "is in the way" in capsys.readouterr().err
    assert [path.name for path in theirs.iterdir()] == ["thesis.txt"]


def test_a_key_knows_every_file_of_a_model_and_nothing_else(tmp_path: Path) -> None:
    def changed(path: Path, file: Path) -> bool:
        before = conversion_key(path, (), leave_out=tmp_path / "none")
        assert before is not None
        assert conversion_key(path, (), leave_out=tmp_path / "none") == before
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"changed")
        return conversion_key(path, (), leave_out=tmp_path / "none") != before

    saved, checkpoint, script = tmp_path / "saved", tmp_path / "checkpoint", tmp_path / "script"
    for folder in (saved, checkpoint, script):
        folder.mkdir()
    for file in (saved / "saved_model.pb", checkpoint / "m.meta", checkpoint / "m.index", tmp_path / "frozen.pb"):
        file.write_bytes(b"1")
    (script / "model.json").write_text('{"weightsManifest": [{"paths": ["a.bin"]}]}')
    (script / "a.bin").write_bytes(b"1")
    assert changed(saved, saved / "saved_model.pb")
    assert changed(saved, saved / "variables/variables.data-00000-of-00001")
    assert changed(checkpoint / "m.meta", checkpoint / "m.data-00000-of-00001")
    assert not changed(checkpoint / "m.meta", checkpoint / "other.index")
    assert changed(script / "model.json", script / "a.bin")
    assert not changed(script / "model.json", script / "b.bin")
    assert changed(tmp_path / "frozen.pb", tmp_path / "frozen.pb")
    assert not changed(tmp_path / "frozen.pb", tmp_path / "beside.pb")
    out = saved / "out.partial"
    before = conversion_key(saved, (), leave_out=out)
    out.mkdir()
    (out / "graph.pb").touch()
    assert conversion_key(saved, (), leave_out=out) == before
    assert conversion_key("keras:ResNet50", (), leave_out=out) != conversion_key("keras:VGG16", (), leave_out=out)
    library = tmp_path / "ops.so"
    library.write_bytes(b"1")
    assert conversion_key(saved, (library,), leave_out=out) != before
    assert conversion_key(tmp_path, (), leave_out=out) is None  # a folder that is no model: not read through
    assert conversion_key(vision.small_cnn, (), leave_out=out) is None


def test_a_key_is_made_of_facts_that_say_all() -> None:
    assert key_of(SETTINGS.backend, (1, 2.0, None), ["a"]) == key_of("onnxruntime", [1, 2.0, None], ("a",))
    options = SplitOptions("onnxruntime", time_limit_seconds=1.0)
    assert key_of(options) == key_of(replace(options))
    assert key_of(options) != key_of(replace(options, min_region=2))
    assert key_of("1") != key_of(1)
    assert key_of({"b": np.bool_(True), "a": 1}) == key_of({"a": 1, "b": True}) != key_of({"a": 1, "b": False})
    assert key_of({"Softmax", "Relu"}) == key_of({"Relu", "Softmax"})
    for vague in (np.zeros(2000), iter(()), replace(options, samples=iter(()))):
        with pytest.raises(TypeError):
            key_of(vague)


def test_samples_are_known_by_their_values() -> None:
    sample = {"x": np.arange(6, dtype=np.float32), "words": np.array(["a", b"b"], object)}
    same = {name: array.copy() for name, array in reversed(sample.items())}
    assert samples_key([sample]) == samples_key([same])
    for other in ({"x": sample["x"] + 1}, {"x": sample["x"].reshape(2, 3)}, {"words": np.array(["a", "b"], object)}):
        assert samples_key([sample | other]) != samples_key([sample])
    assert samples_key([sample, sample]) != samples_key([sample])


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What is written behind so many bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_after_a_full_disk_the_same_command_goes_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["convert", str(model), str(tmp_path / "out"), "--backend", "onnxruntime"]
    for size in (20_000, 100_000):  # less than the stitched model, then less than report.html
        with largest_file(size):
            assert main(words) == 1
        said = capsys.readouterr().err
        assert "File too large" in said
        assert "try: free some disk space" in said
        assert "  kept: run the same command again to go on after 'build'" in said
        assert list(tmp_path.iterdir()) == [tmp_path / "out.partial"]
    assert main(words) == 0
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines() if "done before" in line] == [*STAGES[:-1]]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def children(pid: int) -> set[Path]:
    """The processes that a process has started, by their folder in /proc."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.add(process)
    return found


def in_stage(stage: str, partial: Path) -> bool:
    """Whether a conversion has come to a stage."""
    if stage == "verify":
        with contextlib.suppress(OSError, ValueError):
            return "stitch" in json.loads((partial / "resume.json").read_text())
        return False
    return bool(list(partial.glob(f".{stage}.*")))


@pytest.mark.slow
def test_signals_in_every_stage_leave_no_process_and_what_was_finished(tmp_path: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    command = [sys.executable, "-m", "pipeline", "convert", "keras:MobileNetV2@96", str(out), "--no-cache"]
    before: list[str] = []
    for stage, signum in zip(("export", "split", "build", "verify"), (signal.SIGINT, signal.SIGTERM) * 2, strict=True):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        workers: set[Path] = set()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not in_stage(stage, partial):
            time.sleep(0.02)
            workers |= children(child.pid)
        child.send_signal(signum)
        workers |= children(child.pid)
        output, errors = child.communicate(timeout=60)
        assert child.returncode == 1, errors
        assert output == ""
        last = STAGES[("export", "split", "build", "stitch", "verify").index(stage)]
        *lines, message = errors.splitlines()
        assert message == f"interrupted; run the same command again to go on after {last!r}, or remove {partial}"
        assert [line.split()[0] for line in lines] == list(STAGES[: STAGES.index(last) + 1])
        assert [line.split()[0] for line in lines if "done before" in line] == before
        before = [line.split()[0] for line in lines]
        assert list(tmp_path.iterdir()) == [partial]
        # One that was being started sees by itself, within a second, that its parent is gone.
        deadline = time.monotonic() + 5
        while (left := [worker for worker in workers if worker.exists()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left, (stage, [(worker / "cmdline").read_text() for worker in left])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stderr.splitlines() if "done before" in line] == list(STAGES)
    assert "100.0%" in done.stdout
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_an_interrupt_before_anything_is_finished_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "convert", "keras:MobileNetV2@96", str(tmp_path / "out")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("out.partial/.freeze.*")):
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGINT)
    output, errors = child.communicate(timeout=60)
    assert (child.returncode, output, errors) == (1, "", "interrupted; nothing was left behind\n")
    assert list(tmp_path.iterdir()) == []
