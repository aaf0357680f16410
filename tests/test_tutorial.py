"""docs/tutorial.md, typed in from beginning to end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.test_architecture import ROOT
from tests.test_serving import START_SECONDS, code_of_the_page

FILE = re.compile(r"^<!-- runnable: as (?P<name>\S+) -->\n```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_goes_from_a_keras_model_to_a_service(tmp_path: Path) -> None:
    page = (ROOT / "docs/tutorial.md").read_text()
    programs = {"python": "", "graftrt": "-m pipeline", "uvicorn": "-m uvicorn --port 0"}
    (tmp_path / "bin").mkdir()
    for name, module in programs.items():
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        program.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    for match in FILE.finditer(page):
        (work / match["name"]).write_text(match["code"])
    (work / "serve.py").write_text(code_of_the_page())
    environment = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def type_in(command: str, *arguments: str) -> str:
        words = ["sh", "-e", "-c", f'{command.strip()} "$@"', "sh", *arguments]
        done = subprocess.run(
            words, cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    train, convert, use, serve, ask = COMMANDS.findall(page)
    assert float(type_in(train).partition("accuracy: ")[2]) > 0.9

    said = type_in(convert)
    quoted = re.search(r"^```text\n(\d+ of \d+ ops .*)$", page, re.MULTILINE)
    assert quoted is not None
    assert quoted[1] in said
    assert "0 fallbacks" in said

    *answers, stats = type_in(use).strip().splitlines()
    assert sum(re.fullmatch(r"(\w+) \(\d+%\), is a \1", line) is not None for line in answers) >= 7
    assert stats.count("{'engine_calls': 1, 'fallbacks': {}}") == 2

    with subprocess.Popen(
        ["sh", "-e", "-c", f"export {serve.replace(' uvicorn', '; exec uvicorn')}"],
        cwd=work,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        watchdog = threading.Timer(START_SECONDS, server.kill)
        watchdog.start()
        try:
            assert server.stderr is not None
            found = next(filter(None, (re.search(r"running on (http://\S+)", line) for line in server.stderr)), None)
            assert found is not None, "the service does not start"
            threading.Thread(target=server.stderr.read, daemon=True).start()  # so that its log never blocks it
            names, counts = type_in(ask, found[1]).strip().splitlines()
        finally:
            watchdog.cancel()
            server.terminate()
    assert re.fullmatch(r"\['(disc|square|cross)'(, '(disc|square|cross)'){2}\]", names)
    assert counts.count("'engine_calls': 1, 'fallbacks': {}") == 2
