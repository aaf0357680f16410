"""Requests to a back end and its answers as JSON, one line each, for the pipe to the child process."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from stages import recordjson
from stages.backends.base import BuildOptions, BuildOutcome, Support

Answer = TypeVar("Answer", Support, BuildOutcome)


def encode_check(model: Path) -> str:
    return json.dumps({"do": "check", "model": str(model)})


def encode_build(model: Path, plan: Path, options: BuildOptions, *, reports: bool) -> str:
    """`reports`: whether the parent wants to know how far the build has come."""
    request = {"do": "build", "model": str(model), "plan": str(plan), "options": asdict(options), "reports": reports}
    return json.dumps(request)


def encode_report(share: float, words: str) -> str:
    return json.dumps([round(share, 4), words])


def decode_report(line: bytes) -> tuple[float, str]:
    share, words = json.loads(line)
    return share, words


def decode_options(record: recordjson.Json) -> BuildOptions:
    return recordjson.decode(BuildOptions, record, Path())


def encode_answer(answer: Support | BuildOutcome) -> str:
    return json.dumps(asdict(answer))


def decode_answer(kind: type[Answer], line: bytes) -> Answer:
    return recordjson.decode(kind, json.loads(line), Path())
