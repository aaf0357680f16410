"""Options from a file: what counts, what is refused, and what a shell completes."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import subprocess
from pathlib import Path

import pytest

from pipeline.cli import main, parse


def options(tmp_path: Path, content: str, *arguments: str, command: str = "convert") -> argparse.Namespace:
    """What a command gets that is given a file, and words besides."""
    (tmp_path / "graftrt.toml").write_text(content)
    return parse([command, "--config", str(tmp_path / "graftrt.toml"), *arguments])


def refusal(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> str:
    (tmp_path / "graftrt.toml").write_text(content)
    assert main(["convert", "m", "o", "--config", str(tmp_path / "graftrt.toml")]) == 1
    words = capsys.readouterr().err
    assert "graftrt.toml" in words
    assert "\n  try: " in words
    return words


def test_the_command_line_counts_more_than_the_file_and_the_file_more_than_defaults(tmp_path: Path) -> None:
    content = 'precision = "fp16"\nbackend = "onnxruntime"\nkeep-in-tf = ["Softmax", "Relu"]\n'
    found = options(tmp_path, content, "m", "o", "--precision", "tf32", "--keep-in-tf", "Tanh")
    assert found.precision == "tf32"
    assert found.backend == "onnxruntime"
    assert found.keep_in_tf == ["Tanh"]
    assert found.on_failure == "native"
    before = parse(["convert", "--precision", "tf32", "m", "o", "--config", str(tmp_path / "graftrt.toml")])
    assert before.precision == "tf32"


def test_a_file_without_options_changes_nothing(tmp_path: Path) -> None:
    assert options(tmp_path, "", "m", "o") == parse(["convert", "m", "o"])


def test_every_kind_of_value_becomes_what_the_command_line_makes_of_it(tmp_path: Path) -> None:
    content = """
        model = "model.pb"
        out = "out"
        time_limit = 90
        max-profiles = 2
        no-cache = true
        verbose = 2
        samples = "inputs.npz"
        shape = "x=1x4"
        capability = ["8.6"]
    """
    words = ["--time-limit", "90", "--max-profiles", "2", "--no-cache", "-vv", "--shape", "x=1x4"]
    words += ["--samples", str(tmp_path / "inputs.npz"), "--capability", "8.6"]
    same = parse(["convert", str(tmp_path / "model.pb"), str(tmp_path / "out"), *words])
    assert options(tmp_path, content) == same


def test_names_of_models_are_no_paths(tmp_path: Path) -> None:
    assert options(tmp_path, 'model = "keras:ResNet50"\nout = "/o"').model == "keras:ResNet50"
    assert options(tmp_path, 'model = "pretrained:fer"\nout = "/o"').model == "pretrained:fer"


def test_one_file_serves_several_commands(tmp_path: Path) -> None:
    content = 'precision = "fp16"\nmax-error = 1e-2\n[convert]\nmax-error = 5e-3\n[verify]\nmax_error = 2e-2\n'
    assert options(tmp_path, content, "m", "o").max_error == 5e-3
    assert options(tmp_path, content, "o", command="verify").max_error == 2e-2
    assert options(tmp_path, content, "o", "p", command="build").precision == "fp16"


def test_what_the_file_does_not_give_is_still_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        options(tmp_path, 'model = "m"')
    assert stopped.value.code == 2
    assert "required: out" in capsys.readouterr().err


def test_a_wrong_key_is_named_with_the_closest_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = refusal(tmp_path, 'precison = "fp16"', capsys)
    assert "there is no precison" in words
    assert "did you mean precision" in words
    assert "did you mean keep_in_tf" in refusal(tmp_path, "[convert]\nkeep-in-tensorflow = 1", capsys)
    assert "there is no command [convrt]" in refusal(tmp_path, "[convrt]\njson = true", capsys)
    assert "there is no verify.precision" in refusal(tmp_path, '[verify]\nprecision = "fp16"', capsys)
    assert "there is no config" in refusal(tmp_path, 'config = "other.toml"', capsys)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('no-cache = "yes"', "give true or false"),
        ("max-profiles = 1.5", "give a whole number"),
        ("max-profiles = true", "give a whole number"),
        ('max-error = "small"', "give a number"),
        ("backend = 1", "give a text"),
        ("capability = [8.6]", "give a text"),
        ('precision = "fp4"', "choose fp32, tf32"),
        ("signature = ['a', 'b']", "give a text"),
        ("precision = ", "is no TOML"),
    ],
)
def test_a_wrong_value_is_a_stated_error(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refusal(tmp_path, line, capsys)
    assert words in said
    assert words == "is no TOML" or line.partition(" ")[0] in said


def test_a_file_that_is_not_there_or_no_text_is_a_stated_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "--config", str(tmp_path / "none.toml")]) == 1
    assert "none.toml: can't be read" in capsys.readouterr().err
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert main(["convert", "--config", str(tmp_path / "binary.toml")]) == 1
    assert "is no TOML" in capsys.readouterr().err


@pytest.fixture(scope="module")
def completion_script(tmp_path_factory: pytest.TempPathFactory) -> Path:

    path = tmp_path_factory.mktemp("completion") / "graftrt.bash"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["completion", "bash"]) == 0
    path.write_text(printed.getvalue())
    return path


def completions(script: Path, folder: Path, line: str) -> set[str]:
    """What bash offers for the last word of a line."""
    program = """
        source "$1"
        read -ra COMP_WORDS <<< "$2"
        [[ "$2" == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _shtab_graftrt
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", program, "bash", str(script), line]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=30, check=True)
    return set(done.stdout.split())


def test_bash_completes_commands_options_choices_and_paths(completion_script: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pb").touch()
    (tmp_path / "mine").mkdir()
    offered = functools.partial(completions, completion_script, tmp_path)
    assert offered("graftrt con") == {"convert"}
    assert {"freeze", "export", "split", "build", "stitch", "inspect"} <= offered("graftrt ")
    assert offered("graftrt convert --prec") == {"--precision"}
    assert offered("graftrt convert m o --on-failure ") == {"native", "fail"}
    assert offered("graftrt convert m") == {"model.pb", "mine"}
    assert offered("graftrt convert --config m") == {"model.pb", "mine"}
    assert offered("graftrt export mi") == {"mine"}
    assert offered("graftrt completion z") == {"zsh"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script_that_names_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in ("convert", "inspect", "doctor", "keep-in-tf"))


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("graftrt 0.")
