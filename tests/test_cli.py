"""The command line: what a person types, sees and gets as exit code."""

from __future__ import annotations

import json
import os
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
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "saved_model",
        "regions",
        "report.json",
        "report.html",
        "graph.json",
    }


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
    content = plan.read_bytes()
    plan.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = graftrt("verify", copy)
    assert done.returncode == 1
    assert "region_0" in done.stderr
    assert "plan damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert graftrt("verify", out, "--max-error", "1e-30").returncode == 1


def test_a_stage_refuses_the_artifact_of_another(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import main

    assert main(["freeze", str(model), str(tmp_path / "frozen"), "-q"]) == 0
    assert main(["build", str(tmp_path / "frozen"), str(tmp_path / "built")]) == 1
    assert "holds a FrozenGraph, not a Partition" in capsys.readouterr().err
    assert not (tmp_path / "built").exists()


def test_every_stage_prints_its_artifact_as_json_and_nothing_else(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.cli import main

    previous: Path = model
    for stage in ("freeze", "export", "split", "build", "stitch"):
        assert main([stage, str(previous), str(tmp_path / stage), "--json", "-q"]) == 0
        printed = capfd.readouterr()
        artifact = json.loads((tmp_path / stage / "artifact.json").read_text())
        assert json.loads(printed.out).items() <= artifact.items()
        assert printed.err == ""
        previous = tmp_path / stage


def test_quiet_prints_nothing_and_verbose_prints_more(model: Path, tmp_path: Path) -> None:
    quiet = graftrt("freeze", model, tmp_path / "quiet", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    verbose = graftrt("freeze", model, tmp_path / "verbose", "-v")
    assert verbose.returncode == 0
    assert "oneDNN" in verbose.stderr


def test_what_tensorflow_said_is_shown_when_its_import_fails(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "path/tensorflow"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(
        "import os\nos.write(2, b'GLIBC is too old\\n')\nraise ImportError('libtensorflow.so is broken')\n"
    )
    done = graftrt("freeze", model, tmp_path / "out", environment={"PYTHONPATH": str(broken.parent)})
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: backend: tensorflow: libtensorflow.so is broken",
        "GLIBC is too old",
        "  try: pip install tensorflow",
    ]


def test_without_a_compiler_the_error_says_what_to_install(model: Path, tmp_path: Path) -> None:
    environment = {"CXX": "/nowhere/g++", "GRAFTRT_CACHE_DIR": str(tmp_path / "cache")}
    done = graftrt("convert", model, tmp_path / "out", environment=environment)
    assert done.returncode == 1
    assert "error: engine_op: CXX is /nowhere/g++" in done.stderr
    assert "try: install g++" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_interrupt_that_falls_into_a_destructor_is_not_lost() -> None:
    from pipeline.process import interruptible

    class Unlucky:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    @interruptible()
    def work() -> None:
        Unlucky()
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        work()
