"""One sub-graph to an ONNX model on disk: in this process, or as files for another one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages import onnx_files, translate
from stages.artifacts import Weight
from stages.errors import ExportError

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.compare import Array


@dataclass(frozen=True, slots=True)
class Task:
    """A sub-graph to export, for a child process.

    Attributes:
        graph: file with the GraphDef.
        inputs, outputs: its tensors, as `translate.translate` takes them.
        weights: what the Placeholders for large weights stand for; their files lie under `source`.
        source: folder of the frozen graph.
        target: folder that gets the model, for `export`.
    """

    graph: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[Weight, ...]
    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of an export: a model, or the ops that can't be translated, or a failure that names none.

    Attributes:
        target: folder that holds the model as `model.onnx`, what belongs to it beside it; else it is not there.
        nodes: number of ONNX nodes.
        digest: SHA-256 of the model, weights included; empty if there is none.
        unsupported: as of `translate.Translation`.
        failure: what went wrong.
    """

    target: Path
    nodes: int = 0
    digest: str = ""
    unsupported: tuple[tuple[str, str, str], ...] = ()
    failure: str = ""


def export_to(
    folder: Path,
    graph_def: tf.compat.v1.GraphDef,
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: Mapping[str, Array],
) -> Attempt:
    """Translate a sub-graph and write the model into `folder`, which is made anew; arguments as of `translate.translate`.

    Raises:
        OSError: the model can't be written.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        result = translate.translate(graph_def, inputs, outputs, weights)
    except ExportError as error:
        return Attempt(folder, failure=error.problem)
    if result.unsupported:
        return Attempt(folder, unsupported=result.unsupported)
    folder.mkdir(parents=True)
    model = folder / "model.onnx"
    onnx_files.save_model(result.model, model, result.weights)
    return Attempt(folder, len(result.model.graph.node), onnx_files.digest(model))
