"""The records that stages hand to one another, and how they lie on disk.

`storage.py` writes and reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import ArtifactError

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.compare import Array

FORMAT_VERSION = 1
Shape = tuple[int | None, ...]
"""Sizes per axis; None where an axis is open. A tensor of unknown rank has the shape None instead."""


class Reason(str, Enum):
    """Why an op stays in TensorFlow."""

    UNTRANSLATED = "unsupported by tf2onnx"
    REFUSED = "refused by TensorRT"
    BUILD_FAILED = "build failed"
    DTYPE = "dtype"
    UNKNOWN_RANK = "unknown rank"
    STATEFUL = "stateful"
    CONTROL_FLOW = "control flow"
    TOO_SMALL = "too small"
    CYCLE = "would make a cycle"
    USER = "user's choice"
    WRONG_RESULT = "wrong result"
    SHAPE_TENSOR = "shape tensor at the boundary"
    UNSAFE = "translation known to be wrong"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A TensorFlow tensor: `name` is `op:0`, `dtype` TensorFlow's name (`float32`), `shape` None if rank is unknown."""

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant kept outside the protobuf: `node` is a Placeholder in the graph, its value lies in `file` (.npy).
    `capture` is the place of the variable that it was among the captured inputs of the source's concrete function."""

    node: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    capture: int | None = None


@dataclass(frozen=True, slots=True)
class Capture:
    """A resource that stays in TensorFlow (a table, a written variable): Placeholder `node`, and its place among the
    captured inputs of the source's concrete function."""

    node: str
    index: int


@dataclass(frozen=True, slots=True)
class Source:
    """Where a frozen graph came from. `kind` is saved_model, meta_graph (TensorFlow 1), keras, graph_def or function; `path`
    is absolute (relative if it lies in the frozen graph's own folder), and None for models that exist only in memory; stitching
    needs the SavedModel again where there are captures."""

    kind: str
    path: str | None
    signature: str = "serving_default"
    tags: tuple[str, ...] = ("serve",)


@dataclass(frozen=True, slots=True)
class FrozenGraph:
    """A TensorFlow graph without variables. Files: `graph.pb` (GraphDef), `weights/*.npy`.

    `inputs` and `outputs` are in the order of the signature; `input_names` and `output_names` are the signature's
    keywords for them. Nodes carry `_output_shapes`, so that importing the GraphDef restores shapes set from Python.
    `side_effects` names nodes that must run although no output may depend on them (assignments, prints, assertions).
    """

    folder: Path
    source: Source
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    weights: tuple[Weight, ...] = ()
    captures: tuple[Capture, ...] = ()
    side_effects: tuple[str, ...] = ()

    def graph_def(self) -> tf.compat.v1.GraphDef:
        """The GraphDef; large weights are Placeholders in it."""
        import tensorflow as tf

        graph_def = tf.compat.v1.GraphDef()
        graph_def.ParseFromString((self.folder / "graph.pb").read_bytes())
        return graph_def


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The sizes that one input may have in one profile, smallest, usual, largest."""

    input: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


Profile = tuple[ShapeRange, ...]
"""One shape range for each input of a region that the ONNX model reads, in order."""


@dataclass(frozen=True, slots=True)
class Region:
    """A convex set of TensorFlow ops and the ONNX model of what they compute.

    The ONNX model's inputs are named `input_<i>` and its outputs `output_<i>`, after the position in `inputs` and
    `outputs`; an input that the model does not need is absent from it. dtypes and layout are TensorFlow's.

    Attributes:
        name: `region_<i>`.
        ops: names of the TensorFlow nodes, in topological order.
        inputs, outputs: the boundary, as tensors of the graph that the ops lie in.
        model: path of the ONNX file; large weights lie beside it (see `onnx_files`).
        digest: SHA-256 of the ONNX model, weights included.
        profiles: shape ranges in terms of the ONNX inputs' names; empty until split has determined them.
        max_abs_error, max_rel_error: against TensorFlow, from split's verification; None before.
        scope: the branch or loop body whose nodes the ops are, as `while/body`; empty for the frozen graph itself.
    """

    name: str
    ops: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    model: Path
    digest: str
    profiles: tuple[Profile, ...] = ()
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    scope: str = ""


@dataclass(frozen=True, slots=True)
class LeftOp:
    """An op that stays in TensorFlow, and why. `layer` is the enclosing Keras layer or name scope; the name of an op in
    the body of a branch or loop begins with the body's (`while/body/…`)."""

    node: str
    op: str
    layer: str
    reason: Reason
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """The largest candidate regions, exported. Files: `regions/<name>/model.onnx`."""

    folder: Path
    frozen: FrozenGraph
    candidates: tuple[Region, ...]
    left: tuple[LeftOp, ...]


@dataclass(frozen=True, slots=True)
class Partition:
    """The regions that TensorRT takes, verified against TensorFlow. Files: `regions/<name>/model.onnx`."""

    folder: Path
    frozen: FrozenGraph
    backend: str
    regions: tuple[Region, ...]
    left: tuple[LeftOp, ...]
    ops_total: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a plan depends on. `capabilities` are the compute capabilities aimed at, as `8.6`; information only."""

    backend: str
    version: str
    precision: str
    digest: str
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptHigher:
    """A layer that computes in a higher precision than the fastest of its region: its ops, its precision, and the error with
    the layer lowered too; None where that is no number, and `why` says so."""

    layer: str
    ops: tuple[str, ...]
    precision: str
    error: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """The precisions that `precision="auto"` found for one region.

    Attributes:
        precision: the fastest that some of its layers have.
        ops: the region's ops by precision.
        error: of the model's outputs, with the regions before it as chosen; None where all of it is in fp32.
        added_error: how much of that came with this region.
        evaluations: assignments that were tried.
        note: what limited the choice.
        without_int8: the same with fp16 in place of int8, for back ends that can't build that; empty where it breaks the limit
            or there is no int8.
    """

    region: str
    precision: str
    ops: dict[str, tuple[str, ...]]
    error: float | None
    added_error: float
    evaluations: int
    kept_higher: tuple[KeptHigher, ...] = ()
    note: str = ""
    without_int8: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineTypes:
    """Whether an engine multiplies in the types that its ONNX model states. Types are `int8`, `float8`, `float16`, `bfloat16`,
    `float32`; only convolutions, matrix products and recurrent layers count, for they are what a precision is for.

    Attributes:
        asked: ONNX nodes that multiply, by the type that the converted model states.
        network: layers that multiply, by type, in the network that TensorRT's parser made of it; empty without TensorRT.
        found: layers of the built engine that hold such nodes, by type, from the engine inspector; `not told` counts those
            whose types it does not give. Empty where the engine could not be inspected.
        confirmed: False where a layer has another type than was asked for; None where that can't be known here.
        why_not: why it is not confirmed.
    """

    asked: dict[str, tuple[str, ...]]
    network: dict[str, int]
    found: dict[str, int]
    confirmed: bool | None
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class Engine:
    """One plan for one region. `verified` is `executed` or `not run here`; `note` says why a precision fell back;
    `beside` are files in the plan's folder that hold its weights, each named `<SHA-256>.weights`; `bytes` counts them;
    `types` says whether it computes in what was asked for."""

    region: str
    file: Path
    sha256: str
    bytes: int
    build_seconds: float
    fingerprint: Fingerprint
    verified: str = "not run here"
    note: str = ""
    max_abs_error: float | None = None
    max_rel_error: float | None = None
    beside: tuple[Path, ...] = ()
    types: EngineTypes | None = None


@dataclass(frozen=True, slots=True)
class FailedRegion:
    """A region that no back end could build; its ops stay in TensorFlow. `reason` holds the back ends' words."""

    region: str
    reason: str


@dataclass(frozen=True, slots=True)
class EngineSet:
    """Plans for the regions of a partition. Files: `regions/<name>/<backend>.plan` (or `.onnx`), `<backend>.json`.
    `choices` are the precisions that were found for the regions, where they were searched."""

    folder: Path
    partition: Partition
    engines: tuple[Engine, ...]
    failed: tuple[FailedRegion, ...] = ()
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class StitchedGraph:
    """The model with engines in it. Files: `saved_model/`, and `model.pb` where the source was a GraphDef."""

    folder: Path
    engines: EngineSet
    signature: str = "serving_default"

    @property
    def saved_model(self) -> Path:
        return self.folder / "saved_model"


def load_weight(frozen: FrozenGraph, weight: Weight) -> Array:
    """The value of a large constant, with the dtype that TensorFlow's numpy arrays have; mapped, not read.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return read_weight(frozen.folder, weight)


def read_weight(folder: Path, weight: Weight) -> Array:
    """As `load_weight`, from the frozen graph's folder."""
    import numpy as np
    import tensorflow as tf

    path = folder / weight.file
    dtype = np.dtype(tf.as_dtype(weight.dtype).as_numpy_dtype)
    try:
        value: Array = np.load(path, mmap_mode="r", allow_pickle=False)
        value = value.view(dtype).reshape(weight.shape)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: can't be read: {error}", "freeze the model again") from error
    return value


def layer_of(node: str) -> str:
    """The name scope that a node belongs to: for Keras models the layer, else the scope path without the last part."""
    parts = [part for part in node.split("/") if part and not part.endswith("PartitionedCall")]
    return "/".join(parts[:-1]) if len(parts) > 1 else node
