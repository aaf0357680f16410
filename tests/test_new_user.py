"""The five tasks of the README, as someone types them who has read nothing else, outside the repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import Report
from tests.test_architecture import ROOT

MODELS = """
import keras

keras.utils.set_random_seed(1)
layers = keras.layers
image = keras.Input((32, 32, 3), name="image")
hidden = layers.MaxPool2D()(layers.Conv2D(16, 3, activation="relu")(image))
hidden = layers.GlobalAveragePooling2D()(layers.Conv2D(32, 3, activation="relu")(hidden))
keras.Model(image, layers.Dense(10, activation="softmax")(hidden)).save("model.keras")

vectorize = layers.TextVectorization(output_sequence_length=12)
vectorize.adapt(["a lovely film, wonderful", "a weak and boring waste"])
text = keras.Input((), dtype="string", name="text")
hidden = layers.Embedding(vectorize.vocabulary_size(), 32)(vectorize(text))
hidden = layers.GlobalMaxPooling1D()(layers.Conv1D(64, 3, activation="relu")(hidden))
keras.Model(text, layers.Dense(1, activation="sigmoid")(layers.Dense(64, "relu")(hidden))).export("text_model")
"""
"""What a new user brings along: `model.keras` takes `image` (N, 32, 32, 3), `text_model` takes `text` (N,)."""


def blocks() -> dict[str, str]:
    """The commands of each task, by the task's words."""
    section = (ROOT / "README.md").read_text().partition("## Five tasks\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\*\*([^*]+)\*\*.*?```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL))


def test_every_task_takes_at_most_three_commands() -> None:
    assert len(blocks()) == 5
    assert all(1 <= len(block.splitlines()) <= 3 for block in blocks().values())


@pytest.mark.slow
def test_the_five_tasks_do_what_they_say(tmp_path: Path) -> None:
    """In the README's order: later tasks use what earlier ones wrote."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, program in (
        ("graftrt", f'exec "{sys.executable}" -m pipeline "$@"'),
        ("python", f'exec "{sys.executable}" "$@"'),
    ):
        (programs / name).write_text(f"#!/bin/sh\n{program}\n")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    folder = tmp_path / "project"
    folder.mkdir()

    def type_in(*command: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    type_in(sys.executable, "-c", MODELS)
    convert, why, strings, int8, load = (type_in("sh", "-e", "-c", block) for block in blocks().values())

    assert "12 of 12 ops (100.0%) in 1 engine" in convert
    assert "written to out" in convert
    assert (folder / "out/report.html").is_file()

    assert re.search(r"StringSplitV2\): unsupported by tf2onnx: ", why)
    assert re.search(r"LookupTableFindV2\): .*table", why)

    assert "input  text: string (?)" in strings
    report = Report.read(folder / "text_out/report.json")
    assert report.verification is not None
    assert report.verification.passed
    assert {"text": [2]} in [{name: list(shape) for name, shape in run.items()} for run in report.verification.inputs]
    assert {"StringLower", "StringSplitV2", "LookupTableFindV2"} <= {op.op for op in report.left_in_tensorflow}
    assert report.ops_in_engines > report.ops_total / 2

    assert "tensorrt_rtx int8" in int8
    assert (folder / "out8/calibration.json").is_file()

    assert "0 fallbacks" in load or "engine calls" in load
    assert "serving_default" in load
