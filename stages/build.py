"""Stage: compile every region of a partition for each back end."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages import onnx_files, precision, storage
from stages.artifacts import Engine, EngineSet, FailedRegion, Fingerprint, Partition, Region
from stages.backends.base import PRECISIONS, BuildOptions
from stages.backends.crew import Crew, Workers
from stages.backends.isolated import Worker
from stages.calibrating import CalibrationOptions, Ranges, calibrated_ranges
from stages.enginecache import EngineCache, compile_region
from stages.errors import BuildError
from stages.precision.fp8 import with_casts
from stages.profiles import onnx_inputs
from stages.sizes import shape_text

_FALLBACK = {
    "fp32": ("fp32",),
    "tf32": ("tf32", "fp32"),
    "fp16": ("fp16", "fp32"),
    "bf16": ("bf16", "fp32"),
    "int8": ("int8", "fp16", "fp32"),
    "fp8": ("fp8", "fp16", "fp32"),
}
TABLE = "calibration.json"
"""The file in a build's folder that holds the ranges that were used."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to build, and within which limits.

    Attributes:
        backends: names, the most wanted first.
        precision: fp32 (IEEE), tf32, fp16, bf16, int8 or fp8; a region that fails in it falls back (int8 and fp8 to fp16,
            all to fp32), noted in its engine.
        calibration: where int8 and fp8 take ranges from, and fp16 if there is anything to take them from.
        workspace_mib: scratch memory that an engine may use, in MiB; None: the library's default.
        capabilities: compute capabilities to aim at, as `8.6`; empty: the library's default set.
        time_limit_seconds: for one build of one region.
        memory_limit_mib: resident memory of each building process, in MiB; None: nine tenths of what is available for all
            of them together.
        use_cache: take plans from the user's engine cache and add new ones.
    """

    backends: tuple[str, ...]
    precision: str = "fp32"
    workspace_mib: int | None = None
    capabilities: tuple[str, ...] = ()
    time_limit_seconds: float = 600.0
    memory_limit_mib: int | None = None
    use_cache: bool = True
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)


def build(partition: Partition, out: Path, *, options: EngineOptions) -> EngineSet:
    """Compile each region into `out/regions/<region>/<backend>.plan` (or `.onnx`), its fingerprint beside it as JSON.

    A region needs an engine of a GPU back end if one was asked for; without, it is in `failed` and has no engine at all.
    The ranges that were used are in `out/calibration.json`.

    Raises:
        BuildError: the precision is unknown, or an open axis has no range for a TensorRT back end.
        CalibrationError: int8 or fp8 has nothing to take ranges from, or the calibration table is another model's.
        SplitError, VerifyError: samples don't fit the model, or TensorFlow can't run it on them.
        BackendError: a back end is unknown, or its library is missing.
        ArtifactError: `out` exists or can't be written.
    """
    if options.precision not in PRECISIONS:
        raise BuildError(f"{options.precision}: is no precision", f"name one of {', '.join(PRECISIONS)}")
    lead = [
        Worker(name, time_limit_seconds=options.time_limit_seconds, memory_limit_mib=options.memory_limit_mib)
        for name in options.backends
    ]
    with storage.write_folder(out) as folder, Crew(*lead) as crew:
        if any(worker.backend.device == "gpu" for worker in lead):
            for region in partition.regions:
                _refuse_open_axes(region)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            table = calibrated_ranges(partition, options.precision, options.calibration, scratch=Path(scratch))
        if table is not None:
            table.write(folder / TABLE)
        given = Ranges.of(partition, options.precision, table)
        compiler = _Compiler(options, EngineCache() if options.use_cache else None, given)

        def compile_one(workers: Workers, numbered: tuple[int, Region]) -> list[Engine] | FailedRegion:
            number, region = numbered
            log.info("build: %s, %d of %d (%d ops)", region.name, number, len(partition.regions), len(region.ops))
            return compiler.compile(workers, region, folder / "regions" / region.name)

        engines: list[Engine] = []
        failed: list[FailedRegion] = []
        for result in crew.map(compile_one, list(enumerate(partition.regions, start=1))):
            if isinstance(result, FailedRegion):
                log.warning("build: %s stays in TensorFlow: %s", result.region, result.reason)
                failed.append(result)
            else:
                engines += result
        built = EngineSet(folder, partition, tuple(engines), tuple(failed))
        storage.save(built, folder)
    return storage.load(EngineSet, out)


@dataclass(frozen=True, slots=True)
class _Compiler:
    options: EngineOptions
    cache: EngineCache | None
    ranges: Ranges

    def compile(self, workers: Workers, region: Region, folder: Path) -> list[Engine] | FailedRegion:
        """Engines for one region, in the order of the back ends; `folder` is removed when it fails."""
        shutil.rmtree(folder, ignore_errors=True)  # an earlier try may have got no answer
        folder.mkdir(parents=True)
        models = _Models(region, folder / ".models", self.ranges)
        results = [(worker, self._compile_for(worker, region, models, folder)) for worker in workers]
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
        for used in dict.fromkeys(_precisions(self.options.precision, backend.device)):
            if used == "bf16" and backend.device == "cpu":
                failures.append("bf16: ONNX Runtime has no bfloat16 kernels for a CPU")
                continue
            try:
                model, digest = models.get(used, backend.device)
            except BuildError as error:
                failures.append(f"{used}: {error.problem}")
                continue
            build_options = BuildOptions(used, region.profiles, self.options.workspace_mib, self.options.capabilities)
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
            )
        return "; ".join(failures)


class _Models:
    """A region's ONNX model in the precisions that its engines need, each converted once."""

    def __init__(self, region: Region, folder: Path, ranges: Ranges) -> None:
        self._region = region
        self._folder = folder
        self._ranges = ranges
        self._made: dict[str, tuple[Path, str]] = {}

    def get(self, wanted: str, device: str) -> tuple[Path, str]:
        """The model to compile for a device, and its SHA-256.

        Raises:
            BuildError: the model can't be converted.
        """
        if wanted in ("fp32", "tf32"):
            return self._region.model, self._region.digest
        # Beside float16, ONNX Runtime computes Q/DQ on a CPU slowly, and after its optimisation wrongly.
        rest = "fp32" if device == "cpu" else "fp16"
        name = f"{wanted}_{rest}" if wanted in precision.QUANTISED else wanted
        if name not in self._made:
            model, weights = onnx_files.load_model(self._region.model)
            seen, fixed = self._ranges.of_region(self._region)
            model = precision.convert(model, wanted, weights, ranges=seen, fixed=fixed, rest=rest)
            if wanted == "fp8" and device == "cpu":
                model = with_casts(model)
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{name}.onnx"
            onnx_files.save_model(model, path, weights)
            self._made[name] = path, onnx_files.digest(path)
        return self._made[name]

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


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
