"""A file of options: `--config graftrt.toml`.

Keys are the long options, with `-` or `_`, and the arguments by name (`model`, `out`). At the top level they count for
every command that has them; in a table named after a command, as `[convert]`, for that command alone.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stages.errors import ConversionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_NO_PATHS = ("keras:", "pretrained:")
_NOT_HERE = ("help", "config", "command")
_REMEDIES: Mapping[type, str] = {
    bool: "give true or false",
    int: "give a whole number",
    float: "give a number",
    str: "give a text",
}


def parse(
    parser: argparse.ArgumentParser,
    commands: Mapping[str, argparse.ArgumentParser],
    arguments: Sequence[str] | None,
) -> argparse.Namespace:
    """What the command line says, else the file of `--config`, else the defaults.

    Args:
        parser: the parser of everything; its defaults go, so that what was not given can come from elsewhere.
        commands: those of the commands, by name.

    Raises:
        ConversionError: the file is wrong.
        SystemExit: wrong usage, or only help was wanted.
    """
    names = {name: [a.dest for a in command._actions] + list(command._defaults) for name, command in commands.items()}
    defaults = {name: {dest: commands[name].get_default(dest) for dest in names[name]} for name in commands}
    for command in commands.values():
        command._defaults.clear()
        for action in command._actions:
            action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(arguments))
    from_file: Mapping[str, object] = given.pop("from_file", {})
    return argparse.Namespace(**{**defaults[given["command"]], **from_file, **given})


class ReadFile(argparse.Action):
    """Reads the file of `--config`; an argument that it gives is no longer required."""

    commands: Mapping[str, argparse.ArgumentParser]

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        name = next(name for name, command in self.commands.items() if command is parser)
        namespace.from_file = read(Path(str(values)), name, self.commands)
        for action in parser._actions:
            if action.dest in namespace.from_file:
                action.required = False


def read(path: Path, command: str, parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, object]:
    """What a file says for one command, by the names that its parser gives to options and arguments.

    Args:
        path: a TOML file; relative paths in it are relative to its folder.
        command: name of the command.
        parsers: of every command, so that a file may serve several.

    Raises:
        ConversionError: the file can't be read, or a key or value is not what a command takes.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path}: can't be read: {error.strerror}", "name a TOML file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConversionError(f"{path}: is no TOML: {error}", "see docs/command-line.md for an example") from error
    known = {name: _actions(parser) for name, parser in parsers.items()}
    everywhere = {key: value for key, value in content.items() if not isinstance(value, dict)}
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    for name in tables:
        if name not in known:
            raise ConversionError(f"{path}: there is no command [{name}]", _closest(name, known))
    everyones = {key: action for actions in known.values() for key, action in actions.items()}
    values: dict[str, object] = {}
    for key, value in everywhere.items():
        action = known[command].get(_plain(key)) or _known(path, key, everyones)
        read_value = _value(f"{path}: {key}", value, action, path.parent)
        if _plain(key) in known[command]:
            values[action.dest] = read_value
    for name, table in tables.items():
        for key, value in table.items():
            action = _known(path, f"{name}.{key}", known[name])
            read_value = _value(f"{path}: {name}.{key}", value, action, path.parent)
            if name == command:
                values[action.dest] = read_value
    return values


def _actions(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """What a file may set, by key."""
    found: dict[str, argparse.Action] = {}
    for action in parser._actions:
        names = [name[2:] for name in action.option_strings if name.startswith("--")] or [action.dest]
        found.update({_plain(name): action for name in names if action.dest not in _NOT_HERE})
    return found


def _plain(key: str) -> str:
    return key.replace("-", "_")


def _known(path: Path, key: str, actions: Mapping[str, argparse.Action]) -> argparse.Action:
    name = key.rpartition(".")[2]
    if _plain(name) not in actions:
        raise ConversionError(f"{path}: there is no {key}", _closest(name, actions))
    return actions[_plain(name)]


def _closest(name: str, known: Iterable[str]) -> str:
    choices = sorted(known)
    close = difflib.get_close_matches(_plain(name), choices, n=3, cutoff=0.5)
    return f"{'did you mean' if close else 'one of'} {', '.join(close or choices)}"


def _value(subject: str, value: object, action: argparse.Action, folder: Path) -> object:
    """A value as the command line would make it of words."""
    if isinstance(action, argparse._AppendAction):
        entries = value if isinstance(value, list) else [value]
        return [_single(subject, entry, action, folder) for entry in entries]
    if isinstance(action, argparse._CountAction):
        return _checked(subject, value, int)
    if action.nargs == 0:
        return _checked(subject, value, bool)
    return _single(subject, value, action, folder)


def _single(subject: str, value: object, action: argparse.Action, folder: Path) -> object:
    if action.choices is not None and value not in action.choices:
        raise ConversionError(f"{subject} is {value!r}", f"choose {', '.join(map(str, action.choices))}")
    if action.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if action.type in (int, float):
        return _checked(subject, value, int if action.type is int else float)
    text = str(_checked(subject, value, str))
    if action.type is Path:
        return folder / Path(text).expanduser()
    if action.dest in ("model", "target") and not text.startswith(_NO_PATHS):
        return str(folder / Path(text).expanduser())
    return text


def _checked(subject: str, value: object, kind: type) -> object:
    if type(value) is not kind:
        raise ConversionError(f"{subject} is {value!r}", _REMEDIES[kind])
    return value
