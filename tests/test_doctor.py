"""`doctor`: what works on this machine, and what to do about what doesn't."""

from __future__ import annotations

import json

import pytest

from pipeline import doctor
from pipeline.cli import main
from pipeline.doctor import State, examine
from stages import backends
from stages.backends.base import LIBRARIES
from stages.backends.hardware import Gpu, driver_version, gpu_count, gpus


def test_a_machine_that_runs_these_tests_has_no_problem() -> None:
    findings = examine()
    assert not [finding for finding in findings if finding.state is State.PROBLEM]
    assert {"Python", "TensorFlow", "tf2onnx", "EngineCall op", "GPU", *LIBRARIES} <= {f.subject for f in findings}
    (rtx,) = [finding for finding in findings if finding.subject == "tensorrt_rtx"]
    assert rtx.state is State.FINE
    assert "built a small model" in rtx.detail


def test_without_tensorrt_the_command_fails_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        backends, "why_missing", lambda name: "" if name == "onnxruntime" else f"{name}: is not installed"
    )
    assert main(["doctor"]) == 1
    said = capsys.readouterr()
    assert "problem back ends: no TensorRT works here" in said.out
    assert "pip install 'tensorrt-rtx" in said.err
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert {entry["subject"]: entry["state"] for entry in found}["tensorrt_rtx"] == "note"


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    (finding,) = [finding for finding in examine() if finding.subject == "compiler"]
    assert finding.state is State.NOTE
    assert "no-such-compiler" in finding.detail
    assert "install g++" in finding.remedy


def test_versions_that_do_not_work_together_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(doctor, "gpus", lambda: (Gpu("NVIDIA H100", "9.0"),))
    troubles = [f for f in examine() if f.subject == "tensorrt_rtx" and f.state is State.NOTE]
    assert any("compute capability 9.0" in trouble.detail and "<1.7" in trouble.remedy for trouble in troubles)


def test_devices_are_asked_of_the_driver() -> None:
    assert len(gpus()) == gpu_count()
    assert bool(gpus()) <= bool(driver_version())
