"""docs/examples: each runs in a process of its own, as a newcomer would run it, and prints what docs/examples.md shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretrained_models import fetch_or_skip
from tests.test_architecture import ROOT

EXAMPLES = sorted((ROOT / "docs/examples").glob("*.py"))


def shown(example: Path) -> str:
    """The output that the document shows for an example: the first text block after its link."""
    _, link, rest = (ROOT / "docs/examples.md").read_text().partition(f"(examples/{example.name})")
    block = re.search(r"^```text\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
    assert link, "docs/examples.md does not link it"
    assert block
    return block[1]


def test_there_is_an_example_of_every_kind() -> None:
    kinds = {example.stem for example in EXAMPLES}
    assert kinds == {"image_classifier", "detector_with_nms", "text_classifier", "encoder"}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs_and_prints_what_the_document_shows(example: Path) -> None:
    if "pretrained:" in example.read_text():
        fetch_or_skip("mobilenet-pb")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, str(example)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == shown(example)
    # Whatever the document shows: engines ran, and the answer is TensorFlow's.
    ops, _, total = done.stdout.splitlines()[0].split()[:3]
    assert 0 < int(ops) <= int(total)
    assert re.search(r"^engine calls: [1-9]", done.stdout, re.MULTILINE)
    assert re.search(r"as TensorFlow.*True$", done.stdout, re.MULTILINE)
    assert "False" not in done.stdout
