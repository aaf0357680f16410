"""Completion of commands, options, choices and paths in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

SHELLS = ("bash", "zsh", "tcsh")
_PATHS = ("model", "target", "config")
"""Arguments that are paths, or may be, without having the type."""


def script(parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser], shell: str) -> str:
    """The program that a shell reads to complete `graftrt`."""
    import shtab

    for command in commands.values():
        for action in command._actions:
            if action.type is Path or action.dest in _PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=shell))
