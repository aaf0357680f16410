"""The design's rules about who may import whom, and what a start-up may cost."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("freeze", "export", "split", "build", "stitch")


def imports(file: Path) -> set[str]:
    """Every module that a file imports, wherever in it, `from a import b` counted as `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def starts_with(names: set[str], *packages: str) -> set[str]:
    return {name for name in names for package in packages if name == package or name.startswith(f"{package}.")}


@pytest.mark.parametrize("file", sorted((ROOT / "stages").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_below_imports_the_pipeline_or_a_stage(file: Path) -> None:
    assert not starts_with(imports(file), "pipeline", "tests", "fixtures", *(f"stages.{stage}" for stage in STAGES))


@pytest.mark.parametrize("file", sorted((ROOT / "stages/engine_op").glob("*.py")), ids=lambda file: file.name)
def test_serving_imports_only_the_engine_op(file: Path) -> None:
    used = imports(file)
    assert not starts_with(used, "tf2onnx", "onnx", "onnx_graphsurgeon", "pipeline")
    ours = {name for name in starts_with(used, "stages") if name != "stages"}
    allowed = ["stages.engine_op", "stages.errors", "stages.userdir", "stages.storage", "stages.artifacts"]
    if file.name == "background.py":  # building is what it is there for; it imports the builder when it is asked to
        allowed += ["stages.backends", "stages.enginecache"]
    assert starts_with(ours, *allowed) == ours


def test_only_translate_calls_tf2onnx() -> None:
    callers = {
        str(file.relative_to(ROOT))
        for package in ("stages", "pipeline")
        for file in (ROOT / package).rglob("*.py")
        if starts_with(imports(file), "tf2onnx")
    }
    assert callers
    assert all(caller.startswith("stages/translate/") for caller in callers)


def test_expansions_know_neither_tf2onnx_nor_onnx() -> None:
    files = list((ROOT / "stages/translate/expand").glob("*.py"))
    assert files
    assert not [file.name for file in files if starts_with(imports(file), "tf2onnx", "onnx")]


def test_help_answers_in_under_a_second_without_tensorflow() -> None:
    program = (
        "import sys; from pipeline.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'tensorflow' not in sys.modules"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=ROOT)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_importing_the_public_api_loads_neither_tensorflow_nor_tensorrt() -> None:
    program = "import sys, pipeline; print([m for m in ('tensorflow', 'onnx', 'tensorrt_rtx', 'tensorrt') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_engine_op_imports_without_what_only_converting_needs(tmp_path: Path) -> None:
    for name in ("tf2onnx", "onnx", "onnx_graphsurgeon", "rich"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not installed')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    program = "import stages.engine_op; stages.engine_op.load(); print(stages.engine_op.stats())"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.stdout.strip() == "{}"


def test_the_top_level_is_what_the_design_says() -> None:
    tracked = subprocess.run(["git", "ls-files"], check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
    folders = {path.split("/")[0] for path in tracked if "/" in path}
    assert folders <= {"pipeline", "stages", "tests", "fixtures", "benchmarks", "docs", ".ci"}


def test_modules_stay_small() -> None:
    long = {
        str(file.relative_to(ROOT)): len(file.read_text().splitlines())
        for package in ("pipeline", "stages")
        for file in (ROOT / package).rglob("*.py")
        if len(file.read_text().splitlines()) > 350
    }
    assert not long
