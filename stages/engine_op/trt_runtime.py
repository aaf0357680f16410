"""Loading a plan with TensorRT or TensorRT for RTX: module, runtime, allocator, finished kernels."""

from __future__ import annotations

import contextlib
import importlib
import logging
import mmap
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from stages.engine_op.cuda import Cuda, DeviceMemory
from stages.engine_op.dtypes import BY_NAME, DType
from stages.engine_op.interface import Plan
from stages.engine_op.reasons import CannotRun, Reason
from stages.errors import ArtifactError
from stages.userdir import user_cache_dir

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)

_MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
_WORDS = 5
"""Messages of the library that are kept."""


@dataclass(slots=True)
class LoadedEngine:
    """A deserialized plan and what must live as long."""

    module: ModuleType
    engine: tensorrt.ICudaEngine
    runtime: tensorrt.Runtime
    allocator: object
    messages: list[str]
    kernels: Any
    """TensorRT for RTX's cache of finished kernels."""
    kernels_file: Path | None
    known_kernels: int = 0

    def dtype(self, name: str) -> DType:
        text = str(self.engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]
        return BY_NAME[_DTYPES.get(text, text.lower())]

    def new_context(self, profile: int, stream: int) -> tensorrt.IExecutionContext:
        """An execution context for one profile. It has no scratch memory: its user sets it.

        TensorRT for RTX runs it with the kernels made for the profile. To have others made for each size that comes, at
        once or beside, gained 3 % at batch 1 of a wide range and nothing at other sizes, nor in profiles of one size
        (ResNet50 on an H100); the first call waited 2.9 s for them instead of 1.1 s.

        Raises:
            CannotRun: the library refuses, usually for want of memory.
        """
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.kernels is None:
            context = self.engine.create_execution_context(strategy)
        else:
            config = self.engine.create_runtime_config()
            config.set_runtime_cache(self.kernels)
            config.set_execution_context_allocation_strategy(strategy)
            strategies = self.module.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.NONE
            context = self.engine.create_execution_context(config)
        if context is None:
            raise CannotRun(Reason.OUT_OF_MEMORY, self.words() or "no execution context")
        if profile and not context.set_optimization_profile_async(profile, stream):
            raise CannotRun(Reason.ENGINE_FAILED, self.words())
        return context

    def words(self) -> str:
        """What the library said last."""
        said, self.messages[:] = "; ".join(self.messages[-_WORDS:]), []
        return said

    def close(self) -> None:
        save_kernels(self)
        self.kernels = None


def load_engine(plan: Plan, data: bytes | mmap.mmap, cuda: Cuda, memory: DeviceMemory, stream: int) -> LoadedEngine:
    """Deserialize a plan.

    Raises:
        CannotRun: the library is missing or of another version than built the plan, or refuses the plan.
    """
    module = _module(plan.backend)
    version = str(module.__version__)
    if version != plan.version:
        raise CannotRun(Reason.VERSION, f"the plan was built by {plan.backend} {plan.version}; here is {version}")
    messages: list[str] = []
    logger = _logger(module, messages)
    runtime = module.Runtime(logger)
    allocator = _allocator(module, memory, cuda, stream)
    runtime.gpu_allocator = allocator
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        reason = Reason.OUT_OF_MEMORY if allocator.refused else Reason.PLAN_REFUSED
        raise CannotRun(reason, "; ".join(messages[-_WORDS:]) or "deserialisation failed")
    loaded = LoadedEngine(module, engine, runtime, (allocator, logger), messages, None, None)
    _open_kernels(loaded, plan, cuda)
    return loaded


def save_kernels(loaded: LoadedEngine) -> None:
    """Keep the kernels that TensorRT for RTX finished for this GPU, so that the next process starts warm."""
    if loaded.kernels is None or loaded.kernels_file is None:
        return
    blob = bytes(loaded.kernels.serialize())
    if len(blob) == loaded.known_kernels:
        return
    loaded.known_kernels = len(blob)
    with (
        contextlib.suppress(OSError),
        tempfile.NamedTemporaryFile(dir=loaded.kernels_file.parent, delete=False) as file,
    ):
        file.write(blob)
        Path(file.name).replace(loaded.kernels_file)


def _module(backend: str) -> ModuleType:
    problems = []
    for name in _MODULES.get(backend, ()):
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            problems.append(f"{name}: {error}")
    raise CannotRun(Reason.NO_BACKEND, "; ".join(problems) or f"there is no back end {backend}")


def _open_kernels(loaded: LoadedEngine, plan: Plan, cuda: Cuda) -> None:
    if not hasattr(loaded.engine, "create_runtime_config"):
        return
    config = loaded.engine.create_runtime_config()
    if not hasattr(config, "create_runtime_cache"):
        return
    loaded.kernels = config.create_runtime_cache()
    try:
        folder = user_cache_dir("kernels")
    except ArtifactError as error:
        log.info("finished kernels are not kept: %s", error.problem)
        return
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", cuda.name())
    loaded.kernels_file = folder / f"{plan.sha256[:32]}-{gpu}-{plan.version}.bin"
    with contextlib.suppress(OSError):
        blob = loaded.kernels_file.read_bytes()
        if loaded.kernels.deserialize(blob):
            loaded.known_kernels = len(blob)


def _logger(module: ModuleType, messages: list[str]) -> object:
    class Logger(module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                messages.append(message)

    return Logger()


def _allocator(module: ModuleType, memory: DeviceMemory, cuda: Cuda, stream: int) -> Any:
    """TensorFlow's allocator as TensorRT's."""

    class Allocator(module.IGpuAllocator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            module.IGpuAllocator.__init__(self)
            self.refused = False
            self.bases: dict[int, int] = {}
            """Address given to TensorRT to TensorFlow's, which is aligned to 256 bytes only."""

        def allocate(self, size: int, alignment: int, flags: int) -> int:
            if not size:
                return 0
            alignment = max(alignment, 1)
            try:
                base = memory.allocate(size + alignment)
            except CannotRun:
                self.refused = True
                return 0
            # What TensorFlow freed may still be used by work on its stream, and TensorRT fills memory from others.
            cuda.synchronize(stream)
            address = -(-base // alignment) * alignment
            self.bases[address] = base
            return address

        def deallocate(self, address: int) -> bool:
            memory.free(self.bases.pop(address, 0))
            return True

        def reallocate(self, address: int, alignment: int, size: int) -> int:
            return 0

        def allocate_async(self, size: int, alignment: int, flags: int, stream: int) -> int:
            return self.allocate(size, alignment, flags)

        def deallocate_async(self, address: int, stream: int) -> bool:
            return self.deallocate(address)

    return Allocator()
