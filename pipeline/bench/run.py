"""Measure a stitched model beside its original, one peer after the other."""

from __future__ import annotations

import datetime
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.bench.peer import Original, Request
from pipeline.bench.records import PEERS, STITCHED, TENSORFLOW, XLA, Bench, Measured, Peer, Size
from pipeline.report import Report
from pipeline.run import Progress, Quiet
from pipeline.timing import Effort, Timing
from pipeline.verify import interface_of
from pipeline.versions import installed
from stages import backends
from stages.artifacts import FrozenGraph, ShapeRange
from stages.childprocess import ChildProcess, Lost
from stages.compare import TOLERANCES, Array, difference, worst
from stages.errors import BenchError
from stages.samples import Samples, draw
from stages.samples import read as read_samples
from stages.signature_defs import argument_names
from stages.sizes import SizeRange, Sizes, size_ranges

PEER_SECONDS = 3600.0
"""A peer that takes longer is ended."""
PACKAGES = ("graftrt", "tensorflow", "onnxruntime", "tensorrt-rtx", "tensorrt")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure.

    Attributes:
        peers: of `PEERS`, in the order in which they run.
        batches: sizes of the open first axes; empty: the sizes that the model was converted for.
        shapes, samples: as in `Config`.
        effort: how long.
        original: where the original model is and how it is opened; None: what the report names, opened by default.
        op_libraries: custom ops of the model.
    """

    peers: tuple[str, ...] = PEERS
    batches: tuple[int, ...] = ()
    shapes: tuple[ShapeRange, ...] = ()
    samples: Samples = None
    effort: Effort = field(default_factory=Effort)
    original: Original | None = None
    op_libraries: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.peers if name not in PEERS]
        if unknown:
            raise BenchError(f"peer {unknown[0]!r} is unknown", f"--peers with some of {','.join(PEERS)}")
        if not self.peers or len(set(self.peers)) < len(self.peers):
            raise BenchError("each peer can be measured once, and one at least", f"--peers {','.join(PEERS)}")
        if any(batch < 1 for batch in self.batches):
            raise BenchError(f"batch {min(self.batches)} is not positive", "--batch 1,8,32")


def bench(folder: Path, options: BenchOptions | None = None, *, progress: Progress | None = None) -> Bench:
    """Measure what `convert` wrote to `folder`, each peer in a process of its own, and write `folder/bench.json`.

    Raises:
        ArtifactError: the folder is not what `convert` wrote, or can't be written.
        BenchError: the stitched model can't be run, or the original that was named can't be opened.
        SplitError: shapes, samples or batches don't fit the model.
    """
    options, progress = options or BenchOptions(), progress or Quiet()
    report = Report.read(folder / "report.json")
    interface = interface_of(folder / "saved_model", report.signature)
    samples, sizes = _samples(interface, report, options)
    with tempfile.TemporaryDirectory(prefix="graftrt-bench.") as data:
        _write_inputs(samples, interface, Path(data))
        arguments = argument_names(interface.input_names)
        request = Request(
            peer="",
            saved_model=str(folder.absolute() / "saved_model"),
            signature=report.signature,
            original=_original(options, report),
            must_open=options.original is not None,
            op_libraries=tuple(str(path.absolute()) for path in options.op_libraries),
            data=data,
            sizes=len(sizes),
            inputs=tuple(
                (arguments[name], tensor.dtype)
                for name, tensor in zip(interface.input_names, interface.inputs, strict=True)
            ),
            outputs=interface.output_names,
            effort=options.effort,
        )
        answers: dict[str, Mapping[str, object]] = {}
        words: dict[str, str] = {}
        for name in options.peers:
            with progress.stage(name):
                missing = str(answers.get(TENSORFLOW, {}).get("unavailable", ""))
                answers[name], words[name] = _ask(replace(request, peer=name), missing)
        errors = {name: _errors(Path(data), name, len(sizes)) for name in options.peers}
    peers = tuple(_peer(name, words[name], answers[name], errors[name], len(sizes)) for name in options.peers)
    _refuse_failure(peers)
    result = _result(report, peers, sizes, answers)
    result.write(folder)
    return result


def _original(options: BenchOptions, report: Report) -> Original:
    """What the user named, else what the report names; only folders have signatures."""
    original = options.original or Original(report.model)
    if original.signature is None and Path(original.model).is_dir():
        return replace(original, signature=report.signature)
    return original


def _refuse_failure(peers: Sequence[Peer]) -> None:
    for peer in peers:
        if peer.name == STITCHED and all(measured.timing is None for measured in peer.measured):
            raise BenchError(f"the stitched model can't be run: {peer.measured[0].failed}", "graftrt verify")


def _samples(
    interface: FrozenGraph, report: Report, options: BenchOptions
) -> tuple[list[dict[str, Array]], tuple[Size, ...]]:
    """The inputs to measure with, by tensor name, and what size they have."""
    given = read_samples(interface, options.samples)
    known = size_ranges(interface, report.sizes, given) if report.sizes else ()
    ranges = size_ranges(interface, options.shapes, given) if options.shapes or not known else known
    if options.batches:
        points = [_with_batch(interface, ranges[0].optimum, batch) for batch in dict.fromkeys(options.batches)]
        samples = [draw(interface, point, seed, given[0] if given else None) for seed, point in enumerate(points)]
    elif given and not options.shapes:
        by_size = {tuple(array.shape for array in sample.values()): sample for sample in reversed(given)}
        samples = [dict(sample) for sample in reversed(by_size.values())]
    else:
        points = list(dict.fromkeys(p for r in ranges for p in (r.minimum, r.optimum, r.maximum)))
        samples = [draw(interface, point, seed, given[0] if given else None) for seed, point in enumerate(points)]
    return samples, tuple(_size(interface, sample, known) for sample in samples)


def _with_batch(interface: FrozenGraph, sizes: Sizes, batch: int) -> Sizes:
    if not any(_open_first(tensor.shape) for tensor in interface.inputs):
        raise BenchError("no input of the model has an open first axis", "leave --batch out")
    return Sizes(
        tuple(
            (batch, *shape[1:]) if _open_first(tensor.shape) else shape
            for tensor, shape in zip(interface.inputs, sizes.shapes, strict=True)
        )
    )


def _open_first(shape: Sequence[int | None] | None) -> bool:
    return bool(shape) and shape is not None and shape[0] is None


def _size(interface: FrozenGraph, sample: Mapping[str, Array], known: Sequence[SizeRange]) -> Size:
    shapes = [tuple(sample[tensor.name].shape) for tensor in interface.inputs]
    batches = {shape[0] for shape, tensor in zip(shapes, interface.inputs, strict=True) if _open_first(tensor.shape)}
    return Size(
        {name: list(shape) for name, shape in zip(interface.input_names, shapes, strict=True)},
        batches.pop() if len(batches) == 1 else None,
        any(entry.includes(Sizes(tuple(shapes))) for entry in known) if known else None,
    )


def _write_inputs(samples: Sequence[Mapping[str, Array]], interface: FrozenGraph, data: Path) -> None:
    import tensorflow as tf

    for number, sample in enumerate(samples):
        folder = data / str(number) / "in"
        folder.mkdir(parents=True)
        for index, tensor in enumerate(interface.inputs):
            value = tf.constant(sample[tensor.name], tf.as_dtype(tensor.dtype))
            (folder / str(index)).write_bytes(tf.io.serialize_tensor(value).numpy())


def _ask(request: Request, missing: str) -> tuple[Mapping[str, object], str]:
    """A peer's answer, and what it is in words.

    Args:
        missing: why the original model can't be opened, if that is known.
    """
    kind = {STITCHED: "the stitched model", TENSORFLOW: "TensorFlow", XLA: "TensorFlow with XLA"}[request.peer]
    strings = [name for name, dtype in request.inputs if dtype == "string"]
    if request.peer == XLA and strings:
        return _failed(request, f"XLA knows no strings (input {', '.join(strings)})"), kind
    answer = {"unavailable": missing} if request.peer == XLA and missing else _in_process(request)
    why = answer.get("unavailable")
    if why and request.peer == STITCHED:
        raise BenchError(str(why), "convert the model again")
    if why and request.must_open:
        raise BenchError(f"the original model: {why}", "--model, and the options with which it was converted")
    without = f"the original model can't be opened: {why}; name it with --model"
    if why and "measured" not in answer:
        return _failed(request, without), kind
    if why:
        return answer, f"{kind}, the stitched model's own TensorFlow ops, since {without}"
    return answer, kind if request.peer == STITCHED else f"{kind}, the original model {request.original.model}"


def _failed(request: Request, why: str) -> Mapping[str, object]:
    return {"measured": [{"failed": why}] * request.sizes}


def _in_process(request: Request) -> Mapping[str, object]:
    child = ChildProcess("pipeline.bench.peer")
    what = f"process that measured {request.peer}"
    try:
        child.start(what, lambda: None)
        answer: dict[str, object] = json.loads(child.request(request.to_json(), what, PEER_SECONDS, lambda: None))
    except Lost as lost:
        return _failed(request, str(lost))
    finally:
        child.stop()
    return answer


def _errors(data: Path, name: str, count: int) -> list[float | None]:
    """How far a peer's outputs are from those of TensorFlow, at each size."""
    found: list[float | None] = []
    for number in range(count):
        ours, theirs = (data / str(number) / peer for peer in (name, TENSORFLOW))
        if name == TENSORFLOW or not ours.is_dir() or not theirs.is_dir():
            found.append(None)
            continue
        expected, actual = ([_array(file) for file in sorted(folder.iterdir())] for folder in (theirs, ours))
        found.append(worst([difference(a, b) for a, b in zip(expected, actual, strict=True)]).max_rel)
    return found


def _array(file: Path) -> Array:
    import tensorflow as tf
    from tensorflow.core.framework.tensor_pb2 import TensorProto

    return np.asarray(tf.make_ndarray(TensorProto.FromString(file.read_bytes())))


def _peer(name: str, what: str, answer: Mapping[str, object], errors: Sequence[float | None], count: int) -> Peer:
    entries = answer["measured"]
    assert isinstance(entries, list)
    assert len(entries) == count
    return Peer(
        name,
        what,
        tuple(
            Measured(
                timing=Timing(**entry["timing"]) if "timing" in entry else None,
                failed=entry.get("failed", ""),
                engine_calls=entry.get("engine_calls", 0),
                fallbacks=entry.get("fallbacks"),
                max_rel_error=error,
            )
            for entry, error in zip(entries, errors, strict=True)
        ),
    )


def _result(
    report: Report, peers: tuple[Peer, ...], sizes: tuple[Size, ...], answers: Mapping[str, Mapping[str, object]]
) -> Bench:
    ran = next((answer for answer in answers.values() if "device" in answer), {"device": "unknown", "gpu": False})
    gpu = bool(ran["gpu"])
    built = dict.fromkeys((e.backend, e.precision) for region in report.regions for e in region.engines)
    here: list[str] = []
    elsewhere: list[str] = []
    for backend, precision in built:
        fits = backends.get(backend).device == ("gpu" if gpu else "cpu")
        (here if fits else elsewhere).append(f"{backend} {precision}")
    result = Bench(
        model=report.model,
        date=datetime.date.today().isoformat(),
        device=str(ran["device"]),
        gpu=gpu,
        engines=tuple(here),
        not_run=tuple(elsewhere),
        sizes=sizes,
        peers=peers,
        notes=(),
        versions=installed(PACKAGES),
    )
    return replace(result, notes=tuple(_notes(result, report, tf32=bool(ran.get("tf32")))))


def _notes(result: Bench, report: Report, *, tf32: bool) -> list[str]:
    """What must be known to read the figures."""
    notes = []
    stitched = result.peer(STITCHED)
    for size, measured in zip(result.sizes, stitched.measured if stitched else (), strict=False):
        if measured.fell_back and size.in_profiles is False:
            notes.append(f"batch {size.batch}: outside the profiles that the engines were built for (--shape)")
    if result.not_run:
        where = "no GPU here that TensorFlow uses" if not result.gpu else "they are for a CPU"
        notes.append(f"plans not run: {', '.join(result.not_run)} ({where})")
    if not report.regions:
        notes.append("the stitched model has no engine: all of it runs in TensorFlow")
    base = result.peer(TENSORFLOW)
    if base is None:
        notes.append("TensorFlow was not measured: there is nothing to compare with")
    allowed = report.verification.tolerance
    if allowed is None:  # it was not verified
        allowed = TOLERANCES.get(report.precision, max(TOLERANCES.values()))
    for peer in result.peers:
        error = max((m.max_rel_error for m in peer.measured if m.max_rel_error is not None), default=0.0)
        if error > allowed:
            notes.append(
                f"{peer.name}: answers differ from TensorFlow's by {error:.1e} (allowed {allowed:.0e}): "
                "is the original still the model that was converted?"
            )
    if tf32 and report.precision == "fp32":
        notes.append("TensorFlow computes float32 in TF32 on this GPU (its default), the engines in IEEE float32")
    return notes
