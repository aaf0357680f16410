"""Stage: compile every region of a partition for each back end."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from stages import onnx_files, precision, progress, storage
from stages.artifacts import Engine, EngineSet, FailedRegion, Fingerprint, Partition, Region
from stages.backends.base import PRECISIONS, BuildOptions
from stages.backends.crew import Crew, Workers
from stages.backends.isolated import Worker
from stages.enginecache import EngineCache, compile_region
from stages.errors import BuildError
from stages.profiles import onnx_inputs
from stages.sizes import shape_text

_FALLBACK = {"fp16": ("fp16", "fp32"), "tf32": ("tf32", "fp32"), "fp32": ("fp32",)}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to build, and within which limits.

    Attributes:
        backends: names, the most wanted first.
        precision: fp32 (IEEE), tf32 or fp16; a region that fails in it falls back to fp32, noted in its engine.
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


def build(partition: Partition, out: Path, *, options: EngineOptions) -> EngineSet:
    """Compile each region into `out/regions/<region>/<backend>.plan` (or `.onnx`), its fingerprint beside it as JSON.

    A region needs an engine of a GPU back end if one was asked for; without, it is in `failed` and has no engine at all.

    Raises:
        BuildError: the precision is unknown, or an open axis has no range for a TensorRT back end.
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
        tally = progress.Tally(sum(len(region.ops) for region in partition.regions))
        compiler = _Compiler(options, EngineCache() if options.use_cache else None)

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
        built = EngineSet(folder, partition, tuple(engines), tuple(failed))
        storage.save(built, folder)
    return storage.load(EngineSet, out)


@dataclass(frozen=True, slots=True)
class _Compiler:
    options: EngineOptions
    cache: EngineCache | None

    def compile(self, workers: Workers, region: Region, folder: Path) -> list[Engine] | FailedRegion:
        """Engines for one region, in the order of the back ends; `folder` is removed when it fails."""
        shutil.rmtree(folder, ignore_errors=True)  # an earlier try may have got no answer
        folder.mkdir(parents=True)
        models = _Models(region, folder / ".models")
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
        for used in dict.fromkeys(_precisions(self.options.precision, backend.device)):
            try:
                model, digest = models.get(used)
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

    def __init__(self, region: Region, folder: Path) -> None:
        self._region = region
        self._folder = folder
        self._made: dict[str, tuple[Path, str]] = {}

    def get(self, wanted: str) -> tuple[Path, str]:
        """The model to compile, and its SHA-256.

        Raises:
            BuildError: the model can't be converted.
        """
        if wanted in ("fp32", "tf32"):
            return self._region.model, self._region.digest
        if wanted not in self._made:
            model, weights = onnx_files.load_model(self._region.model)
            model = precision.convert(model, wanted, weights)
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{wanted}.onnx"
            onnx_files.save_model(model, path, weights)
            self._made[wanted] = path, onnx_files.digest(path)
        return self._made[wanted]

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
