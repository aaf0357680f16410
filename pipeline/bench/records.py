"""What was measured: `bench.json`. Keys may be added, never renamed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.timing import Timing
from stages import recordjson
from stages.errors import ArtifactError

BENCH = "bench.json"
SCHEMA_VERSION = 1
STITCHED, TENSORFLOW, XLA = "stitched", "tensorflow", "xla"
PEERS = (STITCHED, TENSORFLOW, XLA)


@dataclass(frozen=True, slots=True)
class Size:
    """One size that was measured. `shapes` by input; `batch` is the size of the open first axes, None where there are none;
    `in_profiles` says whether engines were built for it, None where that is not known."""

    shapes: dict[str, list[int]]
    batch: int | None = None
    in_profiles: bool | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One peer at one size.

    Attributes:
        timing: None where it could not be run; `failed` says why then.
        engine_calls: calls of engines that were made meanwhile.
        fallbacks: native segments that ran instead, by region and reason.
        max_rel_error: largest relative error of any output against the peer `tensorflow`; None where that was not run.
    """

    timing: Timing | None
    failed: str = ""
    engine_calls: int = 0
    fallbacks: dict[str, dict[str, int]] | None = None
    max_rel_error: float | None = None

    @property
    def fell_back(self) -> int:
        """How many times TensorFlow's ops ran instead of an engine."""
        return sum(sum(reasons.values()) for reasons in (self.fallbacks or {}).values())


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to run the model: `name` of `PEERS`, `what` it is in words, and what was measured at each of `Bench.sizes`."""

    name: str
    what: str
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Bench:
    """A comparison. All times are milliseconds, by `Timing`.

    Attributes:
        model: as in the report.
        device: the GPU or the CPU that TensorFlow and the engines ran on, and `gpu` whether it is a GPU.
        engines: back end and precision of the engines that ran, as `onnxruntime fp32`.
        not_run: likewise of the plans that this machine can't run.
        notes: what a reader must know to read the figures.
        versions: of the packages that matter.
    """

    model: str
    date: str
    device: str
    gpu: bool
    engines: tuple[str, ...]
    not_run: tuple[str, ...]
    sizes: tuple[Size, ...]
    peers: tuple[Peer, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    schema_version: int = SCHEMA_VERSION

    def peer(self, name: str) -> Peer | None:
        return next((peer for peer in self.peers if peer.name == name), None)

    def ratios(self, peer: Peer, index: int) -> tuple[float, float] | None:
        """How many times as fast as the peer `tensorflow` at one size: by latency and by throughput; None where one of the
        two was not measured."""
        base = self.peer(TENSORFLOW)
        ours, theirs = peer.measured[index].timing, base.measured[index].timing if base else None
        if ours is None or theirs is None:
            return None
        return theirs.synchronous / ours.synchronous, theirs.pipelined / ours.pipelined

    def write(self, folder: Path) -> None:
        """Write `bench.json`, in place of one that is there."""
        partial = folder / f".{BENCH}.partial"
        try:
            partial.write_text(self.to_json())
            partial.replace(folder / BENCH)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ArtifactError(f"{folder / BENCH}: {error.strerror}", "check the folder's permissions") from error

    def to_json(self) -> str:
        return json.dumps(recordjson.encode(self, Path()), indent=1) + "\n"

    @staticmethod
    def read(folder: Path) -> Bench | None:
        """The `bench.json` of a folder that `convert` wrote, None where there is none.

        Raises:
            ArtifactError: it is damaged, or of a newer schema version.
        """
        path = folder / BENCH
        try:
            body = json.loads(path.read_text())
            if body["schema_version"] > SCHEMA_VERSION:
                raise ArtifactError(f"{path}: has schema version {body['schema_version']}", "upgrade graftrt")
            return recordjson.decode(Bench, body, folder)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path}: is damaged: {error}", f"remove it, or: graftrt bench {folder}") from error


def size_text(size: Size) -> str:
    """`image 8×224×224×3`."""
    return ", ".join(f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in size.shapes.items())


def throughput(size: Size, timing: Timing) -> float:
    """Items a second; calls a second where the model has no open first axis."""
    return 1e3 * (size.batch or 1) / timing.pipelined
