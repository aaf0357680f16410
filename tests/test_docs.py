"""README and docs: links lead somewhere, commands and code run, tables are complete."""

from __future__ import annotations

import ast
import html
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import readme_table
from fixtures import vision
from pipeline import Config, Report, cli, commands, convert
from stages import artifacts, errors
from stages.engine_op import reasons
from tests.test_architecture import ROOT

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
RUNNABLE = re.compile(r"^<!-- runnable(?P<where>[^\n]*) -->\n```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!\\)\]\((?P<target>[^)\s]+)\)")
CAUGHT_INSIDE = {
    "stages/bodies.py",
    "stages/execute.py",
    "stages/precision/calibration.py",
    "stages/translate/__init__.py",
}
"""Modules whose errors may come without a remedy, because no user meets them."""
KERNEL_REASONS = {"no runtime", "native only"}
"""Fallback reasons that the C++ kernel gives by itself."""


@dataclass(frozen=True)
class Command:
    """A command line of a document."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {' '.join(self.words)}"


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def prose(text: str) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def first_column(text: str, heading: str) -> set[str]:
    """What stands in backticks in the first column of the table under a heading."""
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE))


def shell_commands(program: str) -> list[Command]:
    """Every command line of the documents' sh blocks that runs `program`."""
    found = []
    for document in DOCUMENTS:
        for fence in FENCE.finditer(document.read_text()):
            if fence["language"] == "sh":
                lines = [shlex.split(line) for line in fence["body"].splitlines()]
                found += [Command(name(document), tuple(words[1:])) for words in lines if words[0] == program]
    return found


def file_of_options() -> str:
    """The example in docs/command-line.md."""
    text = (ROOT / "docs/command-line.md").read_text()
    (example,) = [fence["body"] for fence in FENCE.finditer(text) if fence["language"] == "toml"]
    return example


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_relative_links_lead_to_files_and_headings(document: Path) -> None:
    targets = [match["target"] for match in LINK.finditer(prose(document.read_text()))]
    dead = []
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert not dead


def build_site(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """What `make docs` runs: MkDocs refuses a page that is not in its navigation, a dead link and a dead anchor."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(out)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def test_pages_build_with_every_page_in_the_navigation_and_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build_site(ROOT / "docs/site/mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {file.parent.name for file in (tmp_path / "site").rglob("index.html")}
    assert {document.stem for document in DOCUMENTS[1:]} <= pages
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r"""<(script|img|iframe)[^>]+src=["']?(https?:)?//""", page.read_text())
        assert not re.search(r"""<link[^>]+href=["']?(https?:)?//""", page.read_text())


def test_a_page_outside_the_navigation_and_a_dead_anchor_fail_the_build(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "benchmarks/results")
    for file in ("README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "docs/stray.md").write_text("# Stray\n\n[dead](splitting.md#no-such-heading)\n")
    done = build_site(tmp_path / "docs/site/mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0
    assert "'nav' configuration" in done.stderr.replace('"', "'")
    assert "no-such-heading" in done.stderr


def test_readme_links_every_document() -> None:
    targets = {match["target"] for match in LINK.finditer(prose((ROOT / "README.md").read_text()))}
    assert {name(document) for document in DOCUMENTS[1:]} <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_python_block_is_marked_as_runnable(document: Path) -> None:
    text = document.read_text()
    assert sum(fence["language"] == "python" for fence in FENCE.finditer(text)) == len(RUNNABLE.findall(text))


@pytest.mark.parametrize("command", shell_commands("graftrt"), ids=str)
def test_graftrt_commands_use_options_that_exist(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "run", lambda options: 0)
    monkeypatch.chdir(tmp_path)
    Path("graftrt.toml").write_text(file_of_options())
    try:
        assert cli.main(command.words) == 0
    except SystemExit as stopped:  # with 0 after --help
        if stopped.code:
            pytest.fail(f"graftrt exits with {stopped.code}")


@pytest.mark.parametrize("command", shell_commands("make"), ids=str)
def test_make_commands_use_targets_and_variables_that_exist(command: Command) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in command.words:
        variable, assigned, _ = word.partition("=")
        if assigned:
            assert f"$({variable})" in makefile
        else:
            assert re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE), f"no target {word}"


def test_there_are_commands_to_check() -> None:
    assert {command.words[0] for command in shell_commands("graftrt")} >= {
        "convert",
        "freeze",
        "export",
        "split",
        "build",
        "stitch",
        "verify",
    }
    assert {command.words[0] for command in shell_commands("make")} >= {"convert", "test"}


def run_blocks(document: Path, where: str) -> int:
    """Run a document's blocks of one kind, one after the other, as one program; how many there were."""
    namespace: dict[str, object] = {"__name__": "document"}
    blocks = [match["code"] for match in RUNNABLE.finditer(document.read_text()) if match["where"] == where]
    for number, code in enumerate(blocks):
        exec(compile(code, f"{name(document)}, block {number}", "exec"), namespace)
    return len(blocks)


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/stages-api.md", "docs/command-line.md"])
def test_code_of_whole_conversions_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_blocks(ROOT / document, "") > 0


CONVERTED = ["docs/report.md", "docs/engine-op.md", "docs/precision.md", "docs/bench.md", "docs/deployment.md"]
"""Pages with code that runs beside a converted model."""


@pytest.mark.parametrize("document", CONVERTED)
def test_code_beside_a_converted_model_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    convert(vision.small_cnn(), "out", Config(backend="onnxruntime"))
    assert run_blocks(ROOT / document, ": beside a converted model in out/") > 0


def test_every_runnable_block_is_run_by_a_test() -> None:
    plain = {name(d) for d in DOCUMENTS if any(m["where"] == "" for m in RUNNABLE.finditer(d.read_text()))}
    beside = {name(d) for d in DOCUMENTS if any(m["where"] != "" for m in RUNNABLE.finditer(d.read_text()))}
    assert plain == {"README.md", "docs/stages-api.md", "docs/command-line.md"}
    # test_serving.py runs docs/serving.md, test_tutorial.py docs/tutorial.md, test_tftrt_converter.py the page on TF-TRT
    assert beside == {*CONVERTED, "docs/serving.md", "docs/tutorial.md", "docs/migrating-from-tf-trt.md"}


def test_the_example_of_a_file_of_options_converts_and_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "graftrt.toml").write_text(file_of_options())
    vision.small_cnn().save(tmp_path / "cnn.keras")
    assert cli.main(["convert", "--config", str(tmp_path / "graftrt.toml")]) == 0
    assert "user's choice" in capsys.readouterr().out
    report = Report.read(tmp_path / "converted/report.json")
    assert report.precision == "fp16"
    assert cli.main(["verify", "--config", str(tmp_path / "graftrt.toml")]) == 0


def test_the_command_line_names_every_command() -> None:
    text = (ROOT / "docs/command-line.md").read_text()
    _, parsers = cli._parser()
    assert not [command for command in parsers if not re.search(rf"^\| .*`{command}\b", text, re.MULTILINE)]


def test_splitting_explains_every_reason() -> None:
    text = (ROOT / "docs/splitting.md").read_text()
    assert first_column(text, "Every reason") == {reason.value for reason in artifacts.Reason}


def test_engine_op_explains_every_fallback() -> None:
    text = (ROOT / "docs/engine-op.md").read_text()
    expected = {reason.value for reason in reasons.Reason} | KERNEL_REASONS
    assert first_column(text, "Reasons for a fallback") == expected
    kernel = (ROOT / "stages/engine_op/engine_call.cc").read_text()
    assert all(f'"{reason}"' in kernel for reason in KERNEL_REASONS)


def test_troubleshooting_quotes_messages_that_exist() -> None:
    sources = [f.read_text() for package in ("pipeline", "stages") for f in sorted((ROOT / package).rglob("*.py"))]
    # Adjacent string literals are one string.
    code = re.sub(r'"\s*(\+ \()?f?"', "", "\n".join(sources))
    text = (ROOT / "docs/troubleshooting.md").read_text()
    column = re.findall(r"^\| (.*?) \| ", text, re.MULTILINE)
    quoted = [message for cell in column for message in re.findall(r"`([^`]+)`", cell)]
    pieces = [piece.strip() for message in quoted for piece in re.split(r"…|\bN\b", message)]
    assert len(quoted) > 40
    assert not [piece for piece in pieces if piece not in code]


def test_troubleshooting_has_every_kind_of_error() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 8
    assert not [kind.__name__ for kind in kinds if f"`{kind.stage}:`" not in text]


def test_every_error_says_what_to_try() -> None:
    names = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    silent = []
    for package in ("pipeline", "stages"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for call in ast.walk(ast.parse(file.read_text())):
                if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] not in names:
                    continue
                arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
                if len(arguments) < 2 or (isinstance(arguments[1], ast.Constant) and not arguments[1].value):
                    silent.append(name(file))
    # Their callers turn these into the reason why an op stays in TensorFlow.
    assert set(silent) <= CAUGHT_INSIDE


def test_architecture_places_every_module() -> None:
    text = (ROOT / "docs/architecture.md").read_text().partition("## Module map")[2]
    modules = [file for package in ("pipeline", "stages") for file in (ROOT / package).glob("*.py")]
    assert not [name(file) for file in modules if not file.stem.startswith("__") and file.name not in text]


def test_report_explains_every_key() -> None:
    import dataclasses

    from pipeline import report

    text = (ROOT / "docs/report.md").read_text()
    records = (report.Report, report.RegionReport, report.EngineReport, report.Verification, artifacts.LeftOp)
    fields = {field.name for record in records for field in dataclasses.fields(record)}
    assert not {field for field in fields if f"`{field}`" not in text}


def test_readme_holds_the_results_that_were_measured() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme_table.rewritten(readme) == readme, "run python -m benchmarks.readme_table"


def test_results_that_are_missing_are_left_out(tmp_path: Path) -> None:
    assert readme_table.block(tmp_path) == readme_table.EMPTY + "\n"
    machine = '{"cpu": "Some CPU", "cores": 2, "python": "3.11.7", "versions": {"tensorflow": "2.21.0"}}'
    figures = (
        '{"session_milliseconds": 200.0, "op_milliseconds": 204.0, "ratio_of_medians": 1.02, '
        '"median_of_paired_ratios": 1.0213, "runs": 30, "batch": 8}'
    )
    (tmp_path / "op_overhead.json").write_text(f'{{"date": "2030-01-02", "machine": {machine}, "figures": {figures}}}')
    text = readme_table.block(tmp_path)
    assert "| median of the paired ratios | 1.021 |" in text
    assert "2 cores of Some CPU, Python 3.11.7, tensorflow 2.21.0" in text
    assert "Clustering" not in text


def test_every_benchmark_that_is_run_has_its_place_in_the_table() -> None:
    from benchmarks.__main__ import NAMES

    assert set(readme_table.RENDERERS) >= set(NAMES)


def test_the_picture_is_complete_in_itself() -> None:
    text = (ROOT / "docs/images/flow.svg").read_text()
    assert text.startswith("<svg")
    assert not re.search(r"""(href|src)=["'](?!#)""", html.unescape(text))
    assert all(f">{stage}<" in text for stage in ("freeze", "export", "split", "build", "stitch", "verify"))
