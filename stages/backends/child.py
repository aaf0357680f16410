"""The child process of `stages.backends.isolated.Worker`: one back end, one JSON line per request and per answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from stages import backends, progress, recordjson
from stages.backends import messages
from stages.backends.base import Backend, BuildOutcome, Support
from stages.childprocess import serve
from stages.errors import BackendError


def main(name: str) -> None:
    """Answer requests for back end `name` until standard input ends."""
    backend = backends.get(name)

    def hello() -> str:
        try:
            return json.dumps({"version": backend.version()})
        except BackendError as error:
            return json.dumps({"problem": error.problem, "remedy": error.remedy})

    def answer(line: str, tell: Callable[[str], None]) -> str:
        def report(share: float, words: str) -> None:
            tell(messages.encode_report(share, words))

        request = json.loads(line)
        with progress.heard_by(report if request.get("reports") else None):
            return messages.encode_answer(_answer(backend, request))

    serve(hello, answer)


def _answer(backend: Backend, request: dict[str, recordjson.Json]) -> Support | BuildOutcome:
    model = Path(str(request["model"]))
    build = request["do"] == "build"
    try:
        if not build:
            return backend.check(model)
        return backend.build(model, Path(str(request["plan"])), messages.decode_options(request["options"]))
    except OSError as error:
        words, number = str(error), error.errno or 0
    # Whatever the library raises is its answer: the child goes on to the next request.
    except Exception as error:  # noqa: BLE001
        words, number = f"{type(error).__name__}: {error}", 0
    return BuildOutcome(False, 0.0, words, os_error=number) if build else Support(accepted=False, failure=words)
