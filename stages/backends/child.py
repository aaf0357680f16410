"""The child process of `stages.backends.isolated.Worker`: one back end, one JSON line per request and per answer.

Libraries print to the standard streams, so the pipes to the parent are moved off them first.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

from stages import backends, recordjson
from stages.backends import messages
from stages.backends.base import Backend, BuildOutcome, Support
from stages.errors import BackendError


def main(name: str) -> None:
    """Answer requests for back end `name` until standard input ends."""
    requests, answers = _take_pipes()
    _leave_with_parent()
    backend = backends.get(name)
    try:
        hello = {"version": backend.version()}
    except BackendError as error:
        hello = {"problem": error.problem, "remedy": error.remedy}
    _send(answers, json.dumps(hello))
    if "version" in hello:
        with os.fdopen(requests, "r", encoding="utf-8") as lines:
            for line in lines:
                _send(answers, messages.encode_answer(_answer(backend, json.loads(line))))
    # Destructors of a half-used library may crash, and nothing here needs them.
    os._exit(0)


def _take_pipes() -> tuple[int, int]:
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, answers


def _leave_with_parent() -> None:
    """Ends this process when the parent has died, in the middle of a build too: nobody else would."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _send(answers: int, line: str) -> None:
    data = line.encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


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


if __name__ == "__main__":
    main(sys.argv[1])
