"""`graftrt verify`: what passes, what fails, and in which words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures import vision
from pipeline import convert
from pipeline.cli import main
from pipeline.report import OutputError, Verification
from pipeline.verify import explain, verify_folder
from stages import build, export, freeze, split, stitch
from stages.artifacts import EngineSet
from stages.errors import ConversionError, VerifyError
from tests.test_architecture import ROOT


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished conversion."""
    folder = tmp_path_factory.mktemp("verify") / "out"
    convert(vision.small_cnn(), folder)
    return folder


@pytest.fixture
def copy(out: Path, tmp_path: Path) -> Path:
    """A finished conversion that may be damaged."""
    return Path(shutil.copytree(out, tmp_path / "copy"))


def test_a_sound_conversion_passes_with_engine_calls(out: Path) -> None:
    check = verify_folder(out)
    assert check.passed
    assert check.fallbacks == {}
    assert check.engines_run == 2
    assert [next(iter(shapes.values())) for shapes in check.inputs] == [[1, 16, 16, 3], [3, 16, 16, 3]]
    assert all(0 <= output.max_rel_error <= 1e-5 for output in check.outputs)


def test_it_needs_neither_the_report_nor_the_original(copy: Path) -> None:
    (copy / "report.json").unlink()
    shutil.rmtree(copy / "regions")
    assert verify_folder(copy).passed


def test_samples_and_shapes_of_the_user_are_what_is_run(out: Path, tmp_path: Path) -> None:
    (name,) = json.loads((out / "report.json").read_text())["verification"]["inputs"][0]
    np.savez(tmp_path / "samples.npz", **{name: np.ones((5, 16, 16, 3), np.float32)})
    check = verify_folder(out, samples=tmp_path / "samples.npz")
    assert [shapes[name][0] for shapes in check.inputs] == [5, 1, 3]


def test_a_damaged_plan_fails_in_words_and_in_json(copy: Path) -> None:
    """In a process of its own: here the sound engine of the same digest may be loaded still, and would be taken."""
    (plan,) = (copy / "saved_model/assets").glob("*.onnx")
    content = plan.read_bytes()
    plan.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    command = [sys.executable, "-m", "pipeline", "verify", str(copy), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "error: verify: region_0: TensorFlow ran instead 2 times: plan damaged" in done.stderr
    assert "\n  try: convert the model on this machine" in done.stderr
    check = json.loads(done.stdout)
    assert (check["passed"], check["engines_run"]) == (False, 0)
    assert set(check["fallbacks"]["region_0"].values()) == {2}


def test_a_difference_above_the_tolerance_fails_and_is_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify_folder(out, max_error=1.0).passed
    assert main(["verify", str(out), "--max-error", "1e-30"]) == 1
    assert "relative error" in (error := capsys.readouterr().err)
    assert "(allowed 1e-30)" in error


def built(seed: int, folder: Path) -> EngineSet:
    """The stages up to build, for ONNX Runtime alone."""
    frozen = freeze.freeze(vision.small_cnn(seed), folder / "freeze")
    exported = export.export(frozen, folder / "export")
    partition = split.split(exported, folder / "split", options=split.SplitOptions("onnxruntime"))
    return build.build(partition, folder / "build", options=build.EngineOptions(("onnxruntime",)))


def test_an_engine_that_computes_something_else_fails(tmp_path: Path) -> None:
    ours, others = built(0, tmp_path / "ours"), built(5, tmp_path / "others")
    stitch.stitch(ours, tmp_path / "right")
    stitch.stitch(replace(ours, engines=others.engines), tmp_path / "wrong")
    assert verify_folder(tmp_path / "right").passed
    check = verify_folder(tmp_path / "wrong")
    assert not check.passed
    assert check.fallbacks == {}
    assert check.outputs[0].max_rel_error > 0.01


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no saved_model": (lambda out: shutil.rmtree(out / "saved_model"), "no such folder"),
    "no graph": (lambda out: (out / "saved_model/saved_model.pb").unlink(), "holds no SavedModel"),
    "a graph that is cut off": (lambda out: cut(out / "saved_model/saved_model.pb"), "can't be read"),
    "an empty graph": (lambda out: (out / "saved_model/saved_model.pb").write_bytes(b""), "0 MetaGraphs"),
    "no variables": (lambda out: shutil.rmtree(out / "saved_model/variables"), "can't be read"),
    "a report that is cut off": (lambda out: cut(out / "report.json"), "is damaged"),
    "a signature that is not there": (
        lambda out: (out / "report.json").write_text(
            (out / "report.json").read_text().replace('"signature": "serving_default"', '"signature": "other"')
        ),
        "has no signature other",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_a_stated_error(what: str, copy: Path) -> None:
    harm, words = BROKEN[what]
    harm(copy)
    with pytest.raises(ConversionError, match=words) as caught:
        verify_folder(copy)
    assert caught.value.remedy


def test_a_model_without_the_signature_lists_those_that_it_has(copy: Path) -> None:
    BROKEN["a signature that is not there"][0](copy)
    with pytest.raises(VerifyError, match=r"try: .*serving_default"):
        verify_folder(copy)


def test_the_explanation_names_outputs_and_regions() -> None:
    check = Verification(
        inputs=({"x": [1]},),
        outputs=(
            OutputError("good", 0.0, 1e-6),
            OutputError("far", 1.0, 0.5),
            OutputError("odd", 0.0, np.inf, "dtype"),
        ),
        engines_run=1,
        fallbacks={"region_1": {"no engine for this device": 3}},
        passed=False,
        tolerance=1e-5,
    )
    assert explain(check) == (
        "output far: relative error 5.0e-01 (allowed 1e-05); output odd: dtype (allowed 1e-05); "
        "region_1: TensorFlow ran instead 3 times: no engine for this device"
    )
