"""A plan run outside TensorFlow, captured as a CUDA graph over fixed buffers: what the stitched model is measured against."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from stages.engine_op.cuda import Cuda
from stages.storage import sha256_file
from stages.userdir import user_cache_dir

_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT32": 4, "INT64": 8, "BOOL": 1, "UINT8": 1, "INT8": 1}


class RawEngine:
    """One engine, on GPU 0, one profile a batch size."""

    def __init__(self, plan: Path) -> None:
        from cuda.bindings import driver

        self._driver: ModuleType = driver
        self._cuda = Cuda(0)
        self._cuda.enter()
        self._module = self._import(plan.stem)
        self._logger = self._module.Logger(self._module.Logger.ERROR)
        self._runtime = self._module.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        self._stream = self._cuda.new_stream()
        self._kept: list[object] = []
        files = user_cache_dir("kernels").glob(f"{sha256_file(plan)[:32]}-*.bin")
        self._kernels = next(files, None)

    def _context(self, kernels: str) -> Any:
        if not hasattr(self._module, "DynamicShapesKernelSpecializationStrategy"):
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        cache = config.create_runtime_cache()
        if self._kernels is not None:  # what the stitched model's runtime has finished for this plan
            cache.deserialize(self._kernels.read_bytes())
        config.set_runtime_cache(cache)
        self._kept.append(cache)
        strategy = getattr(self._module.DynamicShapesKernelSpecializationStrategy, kernels)
        config.dynamic_shapes_kernel_specialization_strategy = strategy
        return self._engine.create_execution_context(config)

    @staticmethod
    def _import(name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError:
            return importlib.import_module(f"{name}_bindings")

    def at(
        self, batch: int, value: np.ndarray, kernels: str = "EAGER"
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        """Launch and fetch for one batch size.

        Args:
            value: the input.
            kernels: TensorRT for RTX's strategy for kernels of open shapes, EAGER, LAZY or NONE.
        """
        engine, module = self._engine, self._module
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == module.TensorIOMode.INPUT]
        profile = next(
            p
            for p in range(engine.num_optimization_profiles)
            if engine.get_tensor_profile_shape(inputs[0], p)[0][0]
            <= batch
            <= engine.get_tensor_profile_shape(inputs[0], p)[2][0]
        )
        context = self._context(kernels)
        context.set_optimization_profile_async(profile, self._stream)
        self._cuda.synchronize(self._stream)
        sizes = {}
        for name in names:
            if name in inputs:
                context.set_input_shape(name, (batch, *context.get_tensor_shape(name)[1:]))
            shape = tuple(context.get_tensor_shape(name))
            item = _BYTES[str(engine.get_tensor_dtype(name)).rsplit(".", 1)[-1]]
            sizes[name] = item * math.prod(shape)
            address = int(self._driver.cuMemAlloc(sizes[name])[1])
            if name in inputs:
                self._driver.cuMemcpyHtoD(address, value.ctypes.data, value.nbytes)
            context.set_tensor_address(name, address)
        context.execute_async_v3(self._stream)
        self._cuda.synchronize(self._stream)
        self._cuda.begin_capture(self._stream)
        context.execute_async_v3(self._stream)
        executable = self._cuda.instantiate(self._cuda.end_capture(self._stream))
        output = next(name for name in names if name not in inputs)
        result = np.empty(sizes[output], np.uint8)
        self._kept += [context, result]
        launch, stream, address = self._driver.cuGraphLaunch, self._stream, context.get_tensor_address(output)
        graph, queue = self._driver.CUgraphExec(executable), self._driver.CUstream(stream)

        def fetch() -> object:
            self._driver.cuMemcpyDtoHAsync(result.ctypes.data, address, sizes[output], queue)
            return self._driver.cuStreamSynchronize(queue)

        return lambda: launch(graph, queue), fetch
