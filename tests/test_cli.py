"""The command line: what a person types, sees and gets as exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import vision

ROOT = Path(__file__).parent.parent


def graftrt(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=400,
        env={**os.environ, **(environment or {})},
        check=False,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "cnn.keras"
    vision.small_cnn().save(path)
    return path


@pytest.fixture(scope="module")
def out(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished conversion."""
    folder = tmp_path_factory.mktemp("out") / "out"
    done = graftrt("convert", model, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_convert_prints_results_on_stdout_and_only_progress_on_stderr(model: Path, tmp_path: Path) -> None:
    done = graftrt("convert", model, tmp_path / "out")
    assert done.returncode == 0
    assert "15 of 15 ops (100.0%) in 1 engine" in done.stdout
    assert [line.split()[0] for line in done.stderr.splitlines()] == [
        "freeze",
        "export",
        "split",
        "build",
        "stitch",
        "verify",
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"saved_model", "regions", "report.json"}


def test_json_is_the_report_and_nothing_else(model: Path, tmp_path: Path) -> None:
    done = graftrt("convert", model, tmp_path / "out", "--json", "-q")
    assert done.returncode == 0
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out/report.json").read_text())
    assert {"model", "backend", "precision", "ops_total", "ops_in_engines", "regions"} <= set(report)
    assert {"left_in_tensorflow", "verification", "stages", "schema_version"} <= set(report)
    assert {"inputs", "outputs", "engines_run", "fallbacks", "passed"} <= set(report["verification"])
    (region,) = report["regions"]
    assert {"name", "ops", "inputs", "outputs", "engines", "max_abs_error", "max_rel_error"} <= set(region)
    engine = region["engines"][0]
    assert {"backend", "precision", "fingerprint", "bytes", "build_seconds", "verified"} <= set(engine)


def test_the_stages_one_after_the_other_give_what_convert_gives(model: Path, out: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("freeze", "export", "split", "build", "stitch")]
    previous: Path = model
    for folder in folders:
        done = graftrt(folder.name, previous, folder)
        assert done.returncode == 0, done.stderr
        previous = folder
    assert "region_0: 15 ops" in graftrt("export", tmp_path / "freeze", tmp_path / "again").stdout
    done = graftrt("verify", tmp_path / "stitch")
    assert done.returncode == 0, done.stderr
    image = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    import stages.engine_op  # noqa: F401

    answers = []
    for folder in (tmp_path / "stitch", out):
        function = tf.saved_model.load(str(folder / "saved_model")).signatures["serving_default"]
        ((name, _),) = function.structured_input_signature[1].items()
        answers.append(next(iter(function(**{name: tf.constant(image)}).values())).numpy())
    assert np.array_equal(*answers)


def test_verify_names_the_region_and_the_reason_when_a_plan_is_damaged(out: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (plan,) = (copy / "saved_model/assets").glob("*.onnx")
    plan.write_bytes(plan.read_bytes()[:-1] + b"\0")
    done = graftrt("verify", copy)
    assert done.returncode == 1
    assert "region_0" in done.stderr
    assert "plan damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert graftrt("verify", out, "--max-error", "1e-30").returncode == 1


BAD = {
    "a missing file": (["{missing}"], "no such file"),
    "an existing output folder": (["{model}", "--out-exists"], "exists already"),
    "an unknown architecture": (["keras:ResNet51"], "ResNet50"),
    "an unknown pretrained model": (["pretrained:nothing"], "no such model"),
    "an unknown signature": (["{saved_model}", "--signature", "nope"], "serving_default"),
    "an unknown back end": (["{model}", "--backend", "cuda"], "is no back end"),
    "a shape that can't be read": (["{model}", "--shape", "image"], "can't be read"),
    "a shape for an unknown input": (["{model}", "--shape", "nope=1x16x16x3"], "no such input"),
    "a shape of another rank": (["{model}", "--shape", "image=1x16x16"], "does not fit"),
    "a shape range out of order": (["{model}", "--shape", "image=8x16x16x3,1x16x16x3,32x16x16x3"], "not in order"),
    "missing samples": (["{model}", "--samples", "{missing}"], "can't be read"),
    "samples with NaN": (["{model}", "--samples", "{nan}"], "contains NaN"),
    "samples of another dtype": (["{model}", "--samples", "{double}"], "float64"),
    "samples of another shape": (["{model}", "--samples", "{small}"], "shape"),
    "samples with another name": (["{model}", "--samples", "{named}"], "no such input"),
    "a region size of zero": (["{model}", "--min-region", "0"], "not positive"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_gets_a_stated_error_and_leaves_nothing(
    what: str, model: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import main

    image = np.zeros((1, 16, 16, 3), np.float32)
    (name,) = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"].structured_input_signature[1]
    for file, arrays in {
        "nan": {name: image * np.nan},
        "double": {name: image.astype(np.float64)},
        "small": {name: image[:, :8]},
        "named": {"nobody": image},
    }.items():
        np.savez(tmp_path / f"{file}.npz", **arrays)
    places = {key: str(tmp_path / f"{key}.npz") for key in ("nan", "double", "small", "named")}
    places |= {"missing": str(tmp_path / "missing"), "model": str(model), "saved_model": str(out / "saved_model")}
    arguments, words = BAD[what]
    target = tmp_path / "target"
    if "--out-exists" in arguments:
        target.mkdir()
    filled = [a.format(**places).replace("image=", f"{name}=") for a in arguments if a != "--out-exists"]
    before = set(tmp_path.iterdir())
    assert main(["convert", filled[0], str(target), *filled[1:]]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "\n  try: " in error
    assert set(tmp_path.iterdir()) == before


def test_a_stage_refuses_the_artifact_of_another(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import main

    assert main(["freeze", str(model), str(tmp_path / "frozen"), "-q"]) == 0
    assert main(["build", str(tmp_path / "frozen"), str(tmp_path / "built")]) == 1
    assert "holds a FrozenGraph, not a Partition" in capsys.readouterr().err
    assert not (tmp_path / "built").exists()


def test_wrong_usage_exits_with_two() -> None:
    from pipeline.cli import main

    for arguments in ([], ["nothing"], ["convert"], ["convert", "m", "o", "--precision", "fp4"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2


def test_without_a_compiler_the_error_says_what_to_install(model: Path, tmp_path: Path) -> None:
    environment = {"CXX": "/nowhere/g++", "GRAFTRT_CACHE_DIR": str(tmp_path / "cache")}
    done = graftrt("convert", model, tmp_path / "out", environment=environment)
    assert done.returncode == 1
    assert "error: engine_op: CXX is /nowhere/g++" in done.stderr
    assert "try: install g++" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_no_folder_and_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "convert", "keras:ResNet50", str(tmp_path / "out"), "--no-cache"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob(".out.*/stages/.split.*")):
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
