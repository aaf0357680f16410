"""What TensorRT and TensorRT for RTX share: one Python API under two module names.

Every function takes the module as its first argument. Parser, network and builder refer to one another by bare
pointers, so the objects of one request stay alive together in a `_Session`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

from stages import progress
from stages.backends.base import (
    BuildOptions,
    BuildOutcome,
    Refusal,
    Support,
    fixed_sizes,
    import_library,
    partial_path,
)
from stages.backends.networks import multiplying_layers
from stages.backends.phases import Phases

if TYPE_CHECKING:
    import tensorrt

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_UNSIZED = ("NonZero", "NonMaxSuppression")
_MESSAGES = 20
"""Messages of each severity that are kept; the first ones name the cause."""
_NO_DRIVER = "cudaError 35"
"""Logged after every real error on a host without a driver, where engines build all the same."""


@dataclass(frozen=True, slots=True)
class Nvinfer:
    """A back end of this family, by name."""

    name: str
    device: str = "gpu"
    suffix: str = ".plan"
    times_kernels: bool = False

    def version(self) -> str:
        return str(import_library(self.name).__version__)

    def check(self, model: Path) -> Support:
        return check(import_library(self.name), model)

    def build(self, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
        return build(import_library(self.name), model, plan, options)


class _Failure(Exception):
    """The library said no; the message holds its words."""


@dataclass(slots=True)
class _Messages:
    errors: list[str]
    warnings: list[str]

    def words(self, otherwise: str) -> str:
        return "; ".join(dict.fromkeys(self.errors)) or otherwise


@dataclass(slots=True)
class _Session:
    """One network and all that it depends on. Fields are dropped in reverse order of creation."""

    messages: _Messages
    logger: tensorrt.ILogger
    builder: tensorrt.Builder
    network: tensorrt.INetworkDefinition
    parser: tensorrt.OnnxParser


def check(trt: ModuleType, model: Path) -> Support:
    """Ask TensorRT's parser about each node, then parse. May kill the process.

    Weights in external data are found beside `model`. An input is a shape tensor if its values decide a shape.
    """
    unsized = _unsized(model)
    if unsized:
        return Support(accepted=False, refusals=unsized)
    try:
        session = _open(trt)
        # Missing in early 10.x; there parsing stops at the first refusal and names it.
        if hasattr(session.parser, "supports_model_v2") and not session.parser.supports_model_v2(
            model.read_bytes(), str(model)
        ):
            return _refused(session)
        session = _open(trt)
        if not session.parser.parse_from_file(str(model)):
            return _refused(session)
        network = session.network
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        return Support(
            accepted=True,
            shape_inputs=tuple(tensor.name for tensor in inputs if tensor.is_shape_tensor),
            bindings=tuple(
                (tensor.name, _DTYPES.get(tensor.dtype.name, tensor.dtype.name)) for tensor in inputs + outputs
            ),
        )
    except _Failure as failure:
        return Support(accepted=False, failure=str(failure))


def _unsized(model: Path) -> tuple[Refusal, ...]:
    """The nodes whose results have a size that depends on values: TensorFlow allocates results before an engine runs.

    TensorRT for RTX has no kernels for them either.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        nodes = onnx.load(str(model), load_external_data=False).graph.node
    except DecodeError:  # the parser finds better words
        return ()
    return tuple(
        Refusal(node.name, node.op_type, "the size of its result depends on values, and is not known before it has run")
        for node in nodes
        if node.op_type in _UNSIZED
    )


def build(trt: ModuleType, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
    """Compile `model` into `plan`, strongly typed. May kill the process; `plan` then does not exist.

    TensorRT's TF32 flag, which is on by default, is cleared unless the precision is `tf32`.
    """
    start = time.perf_counter()
    session = None
    try:
        session = _open(trt)
        if not session.parser.parse_from_file(str(model)):
            raise _Failure(_parser_words(session))
        network = multiplying_layers(trt, session.network)
        config = _configure(trt, session, options)
        monitor = _monitor(trt)
        if monitor is not None:
            config.progress_monitor = monitor
        partial = partial_path(plan)
        try:
            with partial.open("wb") as file:
                if not _serialize(trt, session, config, file):
                    raise _Failure(session.messages.words("the builder returned no engine and gave no reason"))
            partial.replace(plan)
        finally:
            partial.unlink(missing_ok=True)
    except _Failure as failure:
        warnings = tuple(session.messages.warnings) if session else ()
        return BuildOutcome(False, time.perf_counter() - start, str(failure), warnings)
    return BuildOutcome(True, time.perf_counter() - start, warnings=tuple(session.messages.warnings), network=network)


def _serialize(trt: ModuleType, session: _Session, config: tensorrt.IBuilderConfig, file: IO[bytes]) -> bool:
    """Build the engine into a file; False where the builder refuses."""
    if not hasattr(session.builder, "build_serialized_network_to_stream"):  # before 10.13
        serialized = session.builder.build_serialized_network(session.network, config)
        if serialized is None:
            return False
        file.write(serialized)
        return True

    # The whole plan in memory beside the engine would be another copy of the weights.
    class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return file.write(data)
            except OSError as error:  # must not pass through the library
                self.error = self.error or error
                return 0

    writer = Writer()
    built = bool(session.builder.build_serialized_network_to_stream(session.network, config, writer))
    if writer.error is not None:
        raise writer.error
    return built


def _monitor(trt: ModuleType) -> tensorrt.IProgressMonitor | None:
    """What the builder tells how far it has come; None where nobody listens, or the library tells nobody."""
    heard = progress.listener()  # the builder's threads have contexts of their own
    if heard is None or not hasattr(trt, "IProgressMonitor"):
        return None

    phases = Phases(heard)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            phases.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            phases.step(name, step)
            return True  # go on: whoever interrupts kills this process

        def phase_finish(self, name: str) -> None:
            phases.finish(name)

    return Monitor()


def _open(trt: ModuleType) -> _Session:
    messages = _Messages([], [])
    logger = _logger(trt, messages)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        # pybind11 says "factory function returned nullptr" where CUDA can't be initialised; the log says why.
        raise _Failure(messages.words(f"the library makes no builder here: {error}")) from error
    flags = 0
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    if strongly_typed is not None:
        flags |= 1 << int(strongly_typed)
    network = builder.create_network(flags)
    return _Session(messages, logger, builder, network, trt.OnnxParser(network, logger))


def _logger(trt: ModuleType, messages: _Messages) -> tensorrt.ILogger:
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                if _NO_DRIVER in message:
                    return
                kept = messages.errors
            elif severity == trt.ILogger.WARNING:
                kept = messages.warnings
            else:
                return
            if len(kept) < _MESSAGES:
                kept.append(message.strip())

    return Logger()


def _refused(session: _Session) -> Support:
    parser = session.parser
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    refusals = tuple(Refusal(e.node_name(), e.node_operator(), _description(e)) for e in errors if e.node_name())
    # Without a named node there is nothing to act on but the words themselves.
    return Support(accepted=False, refusals=refusals, failure="" if refusals else _parser_words(session))


def _parser_words(session: _Session) -> str:
    parser = session.parser
    described = [_description(parser.get_error(i)) for i in range(parser.num_errors)]
    return "; ".join(dict.fromkeys(described)) or session.messages.words("the parser refused and gave no reason")


def _description(error: tensorrt.ParserError) -> str:
    return "\n".join(line for line in error.desc().splitlines() if _NO_DRIVER not in line)


def _configure(trt: ModuleType, session: _Session, options: BuildOptions) -> tensorrt.IBuilderConfig:
    config = session.builder.create_builder_config()
    tf32 = getattr(trt.BuilderFlag, "TF32", None)
    if tf32 is not None:
        (config.set_flag if options.precision == "tf32" else config.clear_flag)(tf32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    # So that the engine inspector tells the types of the layers, not their names only.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _aim(trt, config, options.capabilities)
    _add_profiles(session, config, options)
    return config


def _aim(trt: ModuleType, config: tensorrt.IBuilderConfig, capabilities: tuple[str, ...]) -> None:
    """Set the compute capabilities to build for; TensorRT for RTX builds for 8.0 and later when none is set."""
    if not capabilities:
        return
    if not hasattr(config, "set_compute_capability"):
        raise _Failure("the library builds only for the GPU of this machine: compute capabilities can't be chosen")
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        target = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""), None)
        if target is None or not config.set_compute_capability(target, index):
            raise _Failure(f"the library does not build for compute capability {capability}")


def _add_profiles(session: _Session, config: tensorrt.IBuilderConfig, options: BuildOptions) -> None:
    network = session.network
    inputs = {tensor.name: tensor for tensor in (network.get_input(i) for i in range(network.num_inputs))}
    for tensor in inputs.values():
        if tensor.is_shape_tensor:
            raise _Failure(f"input {tensor.name} is a shape tensor: its values must be known when the engine is built")
    # The first profile that takes a call's sizes runs it.
    faster = fixed_sizes(options.profiles) if options.fixed_sizes else ()
    for number, profile in enumerate((*faster, *options.profiles)):
        added = session.builder.create_optimization_profile()
        for span in profile:
            if span.input not in inputs:
                raise _Failure(f"profile {number} names {span.input}, which is no input of the model")
            try:
                added.set_shape(span.input, span.minimum, span.optimum, span.maximum)
            except ValueError as error:
                words = session.messages.words(str(error))
                raise _Failure(
                    f"profile {number} does not fit input {span.input} of shape {tuple(inputs[span.input].shape)}: "
                    f"{span.minimum}, {span.optimum}, {span.maximum}: {words}"
                ) from error
        if config.add_optimization_profile(added) < 0:
            raise _Failure(session.messages.words(f"profile {number} is not valid"))
