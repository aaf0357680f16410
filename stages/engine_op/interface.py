"""What an EngineCall op says about itself: its `interface` attribute, as JSON.

The attribute is part of the on-disk format. Keys may be added with defaults, never renamed or removed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

FORMAT_VERSION = 1
Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the op.

    `binding` is its name in the engine, None for an input that engines do not read (the native segment may).
    `dtype` is TensorFlow's name; `shape` None means unknown rank; `memory` is where a GPU kernel wants it.
    """

    binding: str | None
    dtype: str
    shape: Shape | None
    memory: str = "device"


@dataclass(frozen=True, slots=True)
class Plan:
    """One serialized engine, in the order of the op's `plans` inputs.

    `device` is `cpu` (ONNX Runtime) or `gpu` (TensorRT). `sha256` is of the plan's bytes, `digest` of the region's
    ONNX model. `profiles` holds, per profile, `[binding, minimum, optimum, maximum]` for each input. `beside` holds the
    SHA-256 of each file `<SHA-256>.weights` in the plan's folder that the plan reads.
    """

    backend: str
    device: str
    version: str
    precision: str
    sha256: str
    bytes: int
    digest: str
    capabilities: tuple[str, ...] = ()
    profiles: tuple[tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...], ...] = ()
    beside: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Interface:
    """Everything that running a region's engines needs.

    Attributes:
        region: the region's name, the key of `stats()`.
        inputs: ports of `device_inputs`, then of `host_inputs`, in order.
        outputs: ports of `outputs`, in order.
        plans: one for each `plans` input, in order of preference.
        storage: `file` when `plans` are paths, `embedded` when they are the plans' bytes.
        on_failure: `native` runs the native segment when no engine can run, `fail` raises.
        build_at_runtime: on a GPU, an engine for sizes that no plan takes, or in place of a plan that can't be loaded, is
            built beside the calls, from the plan of ONNX Runtime; they run natively until it is ready.
    """

    region: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    plans: tuple[Plan, ...]
    storage: str = "file"
    on_failure: str = "native"
    build_at_runtime: bool = False
    format_version: int = field(default=FORMAT_VERSION)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Interface:
        """Parse an `interface` attribute.

        Raises:
            ValueError: it is not JSON, or was written by a newer format version.
        """
        record = json.loads(text)
        version = record.get("format_version", FORMAT_VERSION)
        if version > FORMAT_VERSION:
            raise ValueError(f"EngineCall interface has format version {version}, this GraftRT knows {FORMAT_VERSION}")
        ports = {
            side: tuple(
                Port(
                    p["binding"],
                    p["dtype"],
                    None if p["shape"] is None else tuple(p["shape"]),
                    p.get("memory", "device"),
                )
                for p in record[side]
            )
            for side in ("inputs", "outputs")
        }
        plans = tuple(
            Plan(
                **{
                    **{k: p[k] for k in ("backend", "device", "version", "precision", "sha256", "bytes", "digest")},
                    "capabilities": tuple(p.get("capabilities", ())),
                    "beside": tuple(p.get("beside", ())),
                    "profiles": tuple(
                        tuple((name, tuple(low), tuple(usual), tuple(high)) for name, low, usual, high in profile)
                        for profile in p.get("profiles", ())
                    ),
                }
            )
            for p in record["plans"]
        )
        return Interface(
            record["region"],
            ports["inputs"],
            ports["outputs"],
            plans,
            record.get("storage", "file"),
            record.get("on_failure", "native"),
            record.get("build_at_runtime", False),
            version,
        )
