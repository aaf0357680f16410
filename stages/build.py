"""Stage: compile every region of a partition for each back end."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stages import onnx_files, precision, progress, storage
from stages.artifacts import Choice, Engine, EngineSet, FailedRegion, Fingerprint, Partition, Region
from stages.autoprecision import AutoOptions, choose, mixed
from stages.backends.base import PRECISIONS, BuildOptions
from stages.backends.crew import Crew, Workers
from stages.backends.isolated import Worker
from stages.calibrating import CalibrationOptions, Ranges, calibrated_ranges
from stages.engine_types import asked_types, compare_network
from stages.enginecache import EngineCache, compile_region
from stages.errors import BuildError
from stages.precision.fp8 import with_casts
from stages.profiles import onnx_inputs
from stages.sizes import shape_text

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array

_WITHOUT_INT8 = "auto without int8"
_FALLBACK = {
    "fp32": ("fp32",),
    "tf32": ("tf32", "fp32"),
    "fp16": ("fp16", "fp32"),
    "bf16": ("bf16", "fp32"),
    "int8": ("int8", "fp16", "fp32"),
    "fp8": ("fp8", "fp16", "fp32"),
    "auto": ("auto", _WITHOUT_INT8, "fp32"),
}
TABLE = "calibration.json"
"""The file in a build's folder that holds the ranges that were used."""

_FIXED_SIZES_OPS = 1000
"""Of larger regions every profile takes the builder tens of seconds."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to build, and within which limits.

    Attributes:
        backends: names, the most wanted first.
        precision: fp32 (IEEE), tf32, fp16, bf16, int8 or fp8; a region that fails in it falls back (int8 and fp8 to fp16,
            all to fp32), noted in its engine. auto: for every layer the fastest of int8, fp16 and fp32 that `auto` allows.
        calibration: where int8 and fp8 take ranges from, and fp16 and auto if there is anything to take them from.
        auto: what auto searches by.
        workspace_mib: scratch memory that an engine may use, in MiB; None: the library's default.
        capabilities: compute capabilities to aim at, as `8.6`; empty: the library's default set.
        time_limit_seconds: for one build of one region.
        memory_limit_mib: resident memory of each building process, in MiB; None: nine tenths of what is available for all
            of them together.
        fixed_sizes: kernels for each profile's smallest, usual and largest size too: faster there, and longer to build; not
            for regions of more than 1,000 ops.
        use_cache: take plans from the user's engine cache and add new ones.
    """

    backends: tuple[str, ...]
    precision: str = "fp32"
    workspace_mib: int | None = None
    capabilities: tuple[str, ...] = ()
    time_limit_seconds: float = 600.0
    memory_limit_mib: int | None = None
    fixed_sizes: bool = True
    use_cache: bool = True
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    auto: AutoOptions = field(default_factory=AutoOptions)


def build(partition: Partition, out: Path, *, options: EngineOptions) -> EngineSet:
    """Compile each region into `out/regions/<region>/<backend>.plan` (or `.onnx`), its fingerprint beside it as JSON.

    A region needs an engine of a GPU back end if one was asked for; without, it is in `failed` and has no engine at all.
    The ranges that were used are in `out/calibration.json`.

    Raises:
        BuildError: the precision is unknown, or an open axis has no range for a TensorRT back end.
        VerifyError: auto has no metric or limit that it could search by.
        CalibrationError: int8 or fp8 has nothing to take ranges from, or the calibration table is another model's.
        SplitError, VerifyError: samples don't fit the model, or TensorFlow can't run it on them.
        BackendError: a back end is unknown, or its library is missing.
        ArtifactError: `out` exists or can't be written.
    """
    if options.precision not in (*PRECISIONS, "auto"):
        raise BuildError(f"{options.precision}: is no precision", f"name one of {', '.join(PRECISIONS)}, auto")
    lead = [
        Worker(name, time_limit_seconds=options.time_limit_seconds, memory_limit_mib=options.memory_limit_mib)
        for name in options.backends
    ]
    with storage.write_folder(out) as folder, Crew(*lead) as crew:
        if any(worker.backend.device == "gpu" for worker in lead):
            for region in partition.regions:
                _refuse_open_axes(region)
        ops = sum(len(region.ops) for region in partition.regions)
        ranging = ops if options.precision in (*precision.QUANTISED, "auto") else 0
        choosing = ops if options.precision == "auto" else 0
        tally = progress.Tally(ranging + choosing + ops)
        choices: tuple[Choice, ...] = ()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            with tally.part(ranging, "calibration"):
                table = calibrated_ranges(partition, options.precision, options.calibration, scratch=Path(scratch))
            given = Ranges.of(partition, options.precision, table)
            if options.precision == "auto":
                with tally.part(choosing, "precisions"):
                    choices = choose(partition, options.auto, given, scratch=Path(scratch))
        if table is not None:
            table.write(folder / TABLE)
        by_region = {choice.region: choice for choice in choices}
        compiler = _Compiler(options, EngineCache() if options.use_cache else None, given, by_region)

        def compile_one(workers: Workers, numbered: tuple[int, Region]) -> list[Engine] | FailedRegion:
            number, region = numbered
            log.info("build: %s, %d of %d (%d ops)", region.name, number, len(partition.regions), len(region.ops))
            with tally.part(len(region.ops), region.name):
                return compiler.compile(workers, region, folder / "regions" / region.name)

        engines: list[Engine] = []
        failed: list[FailedRegion] = []
        for result in crew.map(compile_one, list(enumerate(partition.regions, start=1))):
            if isinstance(result, FailedRegion):
                log.warning("build: %s stays in TensorFlow: %s", result.region, result.reason)
                failed.append(result)
            else:
                engines += result
        built = EngineSet(folder, partition, tuple(engines), tuple(failed), choices)
        storage.save(built, folder)
    return storage.load(EngineSet, out)


@dataclass(frozen=True, slots=True)
class _Compiler:
    options: EngineOptions
    cache: EngineCache | None
    ranges: Ranges
    choices: Mapping[str, Choice]

    def compile(self, workers: Workers, region: Region, folder: Path) -> list[Engine] | FailedRegion:
        """Engines for one region, in the order of the back ends; `folder` is removed when it fails."""
        shutil.rmtree(folder, ignore_errors=True)  # an earlier try may have got no answer
        folder.mkdir(parents=True)
        models = _Models(region, folder / ".models", self.ranges, self.choices.get(region.name))
        tally = progress.Tally(len(workers))
        results: list[tuple[Worker, Engine | str]] = []
        for worker in workers:
            with tally.part(1, worker.backend.name):
                results.append((worker, self._compile_for(worker, region, models, folder)))
        models.remove()
        engines = [result for _, result in results if isinstance(result, Engine)]
        failures = [f"{worker.backend.name}: {result}" for worker, result in results if isinstance(result, str)]
        devices = {worker.backend.device for worker in workers}
        wanted = "gpu" if "gpu" in devices else "cpu"
        if not any(isinstance(result, Engine) and worker.backend.device == wanted for worker, result in results):
            shutil.rmtree(folder)
            return FailedRegion(region.name, "; ".join(failures))
        for failure in failures:
            log.warning("build: %s: %s", region.name, failure)
        return engines

    def _compile_for(self, worker: Worker, region: Region, models: _Models, folder: Path) -> Engine | str:
        """The engine, or why there is none in any precision."""
        backend = worker.backend
        plan = folder / f"{backend.name}{backend.suffix}"
        failures: list[str] = []
        for wanted in dict.fromkeys(_precisions(self.options.precision, backend.device)):
            if not models.known(wanted):
                continue
            used = models.name(wanted)
            if used == "bf16" and backend.device == "cpu":
                failures.append("bf16: ONNX Runtime has no bfloat16 kernels for a CPU")
                continue
            try:
                model, digest, types = models.get(wanted, backend.device)
            except BuildError as error:
                failures.append(f"{used}: {error.problem}")
                continue
            fixed = self.options.fixed_sizes and len(region.ops) <= _FIXED_SIZES_OPS
            build_options = BuildOptions(
                used, region.profiles, self.options.workspace_mib, self.options.capabilities, fixed
            )
            outcome = compile_region(worker, model, digest, build_options, plan, cache=self.cache)
            if not outcome.built:
                failures.append(f"{used}: {outcome.failure}")
                continue
            log.info(
                "build: %s: %s %s, %.1f s%s",
                region.name,
                backend.name,
                used,
                outcome.seconds,
                ", from cache" if outcome.cached else "",
            )
            notes = [f"{failure}; built in {used}" for failure in failures]
            fingerprint = Fingerprint(
                backend.name,
                worker.version,
                used,
                region.digest,
                self.options.capabilities if backend.device == "gpu" else (),
            )
            _write_fingerprint(folder / f"{backend.name}.json", fingerprint)
            beside = onnx_files.files_beside(plan) if plan.suffix == ".onnx" else ()
            return Engine(
                region.name,
                plan,
                storage.sha256_file(plan),
                sum(file.stat().st_size for file in (plan, *beside)),
                outcome.seconds,
                fingerprint,
                note="; ".join(notes),
                beside=beside,
                types=None if types is None else compare_network(types, outcome.network),
            )
        return "; ".join(failures)


class _Models:
    """A region's ONNX model in the precisions that its engines need, each converted once."""

    def __init__(self, region: Region, folder: Path, ranges: Ranges, choice: Choice | None) -> None:
        self._region = region
        self._folder = folder
        self._ranges = ranges
        self._choice = choice
        self._made: dict[str, tuple[Path, str, dict[str, str] | None]] = {}

    def name(self, wanted: str) -> str:
        """What a precision comes to: auto to the fastest that was chosen."""
        if self._choice is None or wanted not in ("auto", _WITHOUT_INT8):
            return wanted
        return self._choice.precision if wanted == "auto" else "fp16"

    def known(self, wanted: str) -> bool:
        """False for auto without int8 where that is no choice."""
        return wanted != _WITHOUT_INT8 or (self._choice is not None and bool(self._choice.without_int8))

    def get(self, wanted: str, device: str) -> tuple[Path, str, dict[str, str] | None]:
        """The model to compile for a device, its SHA-256, and the types that it states, if that can be known.

        Raises:
            BuildError: the model can't be converted.
        """
        used = self.name(wanted)
        plain = used in ("fp32", "tf32")
        name = "fp32" if plain else f"{wanted}_{device}" if used in precision.QUANTISED else wanted
        if name not in self._made:
            path, digest = self._region.model, self._region.digest
            if not plain:
                model, weights = onnx_files.load_model(path)
                model = self._converted(model, wanted, device, weights)
                self._folder.mkdir(exist_ok=True)
                path = self._folder / f"{name}.onnx"
                onnx_files.save_model(model, path, weights)
                digest = onnx_files.digest(path)
            self._made[name] = path, digest, _stated_types(path)
        return self._made[name]

    def _converted(
        self, model: onnx.ModelProto, wanted: str, device: str, weights: dict[str, Array]
    ) -> onnx.ModelProto:
        seen, fixed = self._ranges.of_region(self._region)
        # Beside float16, ONNX Runtime computes Q/DQ on a CPU slowly, and after its optimisation wrongly.
        if self._choice and wanted in ("auto", _WITHOUT_INT8):
            ops = self._choice.ops if wanted == "auto" else self._choice.without_int8
            return mixed(model, ops, weights, ranges=seen, fixed=fixed, quantised_only=device == "cpu")
        rest = "fp32" if device == "cpu" else "fp16"
        model = precision.convert(model, wanted, weights, ranges=seen, fixed=fixed, rest=rest)
        return with_casts(model) if wanted == "fp8" and device == "cpu" else model

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _stated_types(model: Path) -> dict[str, str] | None:
    """The types that each node multiplies in; None where ONNX's type inference rejects what TensorRT may still take."""
    try:
        return asked_types(onnx_files.load_model(model)[0])
    except BuildError as error:
        log.info("build: %s", error.problem)
        return None


def _precisions(asked: str, device: str) -> tuple[str, ...]:
    """What to try, in order. A CPU has no TF32: there it is IEEE FP32, which is closer to TensorFlow."""
    return tuple("fp32" if wanted == "tf32" and device == "cpu" else wanted for wanted in _FALLBACK[asked])


def _refuse_open_axes(region: Region) -> None:
    """Raise where TensorRT would get an input with an open axis and no range for it."""
    ranges = {entry.input for profile in region.profiles for entry in profile}
    for name, tensor in onnx_inputs(region):
        if name not in ranges and (tensor.shape is None or None in tensor.shape):
            raise BuildError(
                f"{region.name} input {tensor.name}: shape {shape_text(tensor.shape)} is open and has no range",
                f"--shape {tensor.name}=MIN,OPT,MAX",
            )


def _write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    path.write_text(json.dumps(asdict(fingerprint), indent=1) + "\n")
