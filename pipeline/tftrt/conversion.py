"""One conversion in a temporary folder: what TF-TRT's converters hold between `convert` and `save`."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.report import Report
from pipeline.run import convert
from stages import storage
from stages.artifacts import EngineSet
from stages.bodies import find
from stages.build import TABLE
from stages.graph import Graph


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion made. `folder` holds `saved_model/`, and `model.pb` where a GraphDef was given; whoever
    has this removes it with `remove`. `op_types` counts the types of each region's ops."""

    folder: Path
    report: Report
    op_types: dict[str, Counter[str]]

    @property
    def saved_model(self) -> Path:
        return self.folder / "saved_model"

    @property
    def calibration_table(self) -> Path:
        """The ranges that INT8 was built with."""
        return self.folder / TABLE

    def remove(self) -> None:
        """Remove the folder."""
        remove(self.folder.parent)


def remove(folder: Path) -> None:
    """Remove a temporary folder, if it is still there."""
    shutil.rmtree(folder, ignore_errors=True)


def run(model: Path, config: Config) -> Conversion:
    """Convert a model that TF-TRT's user gave. Works in TensorFlow 1's graph mode too.

    Args:
        config: with `keep_stages`.

    Raises:
        ConversionError: as `pipeline.convert`.
    """
    parent = Path(tempfile.mkdtemp(prefix="graftrt-tftrt-"))
    folder = parent / "out"
    try:
        with eagerly():
            report = convert(model, folder, config)
        types = _op_types(storage.load(EngineSet, folder / "stages/build"))
        shutil.rmtree(folder / "stages")
    except BaseException:
        remove(parent)
        raise
    return Conversion(folder, report, types)


def _op_types(engines: EngineSet) -> dict[str, Counter[str]]:
    """By region; it may lie in the body of a branch or loop."""
    main = Graph(engines.partition.frozen)
    found = {}
    for region in engines.partition.regions:
        nodes = find(main, region.scope).node_defs
        found[region.name] = Counter(nodes[op].op for op in region.ops)
    return found


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Run eagerly inside, also in a program that turned eager execution off or is building a graph: converting traces
    and saves tf.functions."""
    from tensorflow.python.eager import context

    with context.eager_mode():
        yield
