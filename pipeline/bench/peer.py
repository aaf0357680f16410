"""One peer in a process of its own: opens a model in one of three ways and measures it at several sizes.

All peers are called alike: a concrete function of the exact shapes, on tensors that lie on the device already.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.bench.records import STITCHED, TENSORFLOW, XLA
from pipeline.timing import Effort, timed
from stages import recordjson
from stages.backends.hardware import cpu_name
from stages.childprocess import serve
from stages.errors import BenchError, ConversionError

if TYPE_CHECKING:
    import tensorflow as tf

    from stages.model import Model


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is open: `call` gives outputs by name for tensors by argument name (`signature_defs.argument_names`);
    `as_it_is` where it must be traced by `importing.trace_as_it_is`; `no_xla` is why XLA can't compile it, empty where it
    has to be tried."""

    call: Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]]
    as_it_is: bool = False
    no_xla: str = ""


@dataclass(frozen=True, slots=True)
class Original:
    """What to open as the original model, as for `stages.sources.open_model`; `pretrained:NAME` is fetched."""

    model: str
    signature: str | None = None
    tags: tuple[str, ...] | None = None
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    constants: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What a peer is asked.

    Attributes:
        peer: one of `PEERS`.
        original: what to open for every peer but `stitched`.
        must_open: it is an error where that can't be opened; else the stitched model's own TensorFlow ops stand in for it.
        data: a folder with `<size>/in/<number>` for each of `inputs`, a serialised tensor; outputs go to `<size>/<peer>`.
        inputs: argument name and dtype of each input of the stitched model.
        outputs: names of its outputs.
    """

    peer: str
    saved_model: str
    signature: str
    original: Original
    must_open: bool
    op_libraries: tuple[str, ...]
    data: str
    sizes: int
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    effort: Effort

    def to_json(self) -> str:
        return json.dumps(recordjson.encode(self, Path()))

    @staticmethod
    def from_json(text: str) -> Request:
        return recordjson.decode(Request, json.loads(text), Path())


def main(_: str) -> None:
    """In the child process: a request a line, the answer a line."""
    serve(lambda: "{}", lambda line, tell: json.dumps(answer(Request.from_json(line))))


def answer(request: Request) -> dict[str, object]:
    """`device`, `gpu` and `tf32`, and `measured`: for each size `timing` or `failed`, and the engine op's counts.
    `unavailable` is why the model can't be opened; without the others where nothing stands in for it."""
    import tensorflow as tf

    from stages import engine_op, op_libraries

    engine_op.load()
    unavailable = ""
    with contextlib.ExitStack() as stack:
        try:
            op_libraries.load(map(Path, request.op_libraries))
            opened = _stitched(request) if request.peer == STITCHED else _original(request)
        except ConversionError as error:
            unavailable = error.problem
            if request.must_open or request.peer != TENSORFLOW:
                return {"unavailable": unavailable}
            opened = _stitched(request)
        if request.peer != STITCHED:
            stack.enter_context(engine_op.native_only())
        measured = [_measured(request, opened, Path(request.data) / str(number)) for number in range(request.sizes)]
    gpus = tf.config.list_physical_devices("GPU")
    device = f"{len(os.sched_getaffinity(0))} cores of {cpu_name()}"
    if gpus:
        device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "a GPU")
    tf32 = bool(gpus) and tf.config.experimental.tensor_float_32_execution_enabled()
    return {"unavailable": unavailable, "device": device, "gpu": bool(gpus), "tf32": tf32, "measured": measured}


def _stitched(request: Request) -> Opened:
    from stages.saved_models import load_saved_model

    loaded = load_saved_model(Path(request.saved_model))
    function = loaded.signatures[request.signature]  # type: ignore[attr-defined]

    def call(tensors: Mapping[str, tf.Tensor], owner: object = loaded) -> Mapping[str, tf.Tensor]:
        # A function keeps its variables weakly: within another function they must have an owner.
        return function(**tensors)  # type: ignore[no-any-return]

    return Opened(call)


def _original(request: Request) -> Opened:
    from pipeline.pretrained import resolve
    from stages.signature_defs import argument_names
    from stages.sources import open_model

    asked = request.original
    resolved = resolve(asked.model)
    model = open_model(
        resolved.source,
        signature=asked.signature,
        tags=asked.tags,
        inputs=asked.inputs or resolved.inputs,
        outputs=asked.outputs or resolved.outputs,
        constants={**resolved.constants, **asked.constants},
    )
    arguments = argument_names(model.input_names)
    for verb, own, given in (
        ("takes", arguments.values(), [name for name, _ in request.inputs]),
        ("gives", model.output_names, request.outputs),
    ):
        if sorted(own) != sorted(given):
            names = ", ".join(sorted(own)), ", ".join(sorted(given))
            raise BenchError(
                f"{asked.model}: {verb} {names[0]}, and the stitched model {names[1]}", "name the original with --model"
            )
    return _call_of(model, {name: arguments[own] for name, own in zip(model.inputs, model.input_names, strict=True)})


def _call_of(model: Model, arguments: Mapping[str, str]) -> Opened:
    """The model's graph as it is, with its own variables and tables.

    Args:
        arguments: argument name of each of its input tensors.
    """
    from stages.importing import import_graph
    from stages.interface import make_constant

    if model.function is None:
        graph_def, captured = model.graph_def, {}
    else:
        graph = model.function.graph
        with graph.as_default():
            graph_def = graph.as_graph_def()
        captured = {placeholder.name: tensor for tensor, placeholder in graph.captures}
    assert graph_def is not None
    for fixed in model.fixed:
        make_constant(graph_def, fixed)
    replaced = {tensor.partition(":")[0] for tensor in (*arguments, *captured) if tensor not in model.outputs}
    for node in graph_def.node:
        if node.name in replaced:  # nothing reads it once it is imported, but XLA would compile it all the same
            node.op = "NoOp"
            node.attr.clear()

    def call(tensors: Mapping[str, tf.Tensor], owner: object = model) -> Mapping[str, tf.Tensor]:
        fed = {tensor: tensors[argument] for tensor, argument in arguments.items()}
        results = import_graph(graph_def, fed | captured, model.outputs)
        return dict(zip(model.output_names, results, strict=True))

    return Opened(call, any(node.op == "Switch" for node in graph_def.node), _no_xla(graph_def))


def _no_xla(graph_def: tf.compat.v1.GraphDef) -> str:
    """XLA knows no tables, and is not asked: compiling a model of strings and tables was seen to end the process (SIGABRT)."""
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    tables = dict.fromkeys(node.op for node in nodes if node.op.startswith("LookupTable"))
    return f"XLA can't compile {', '.join(tables)}: it knows no tables" if tables else ""


def _measured(request: Request, opened: Opened, data: Path) -> dict[str, object]:
    import tensorflow as tf

    from stages import engine_op
    from stages.importing import trace_as_it_is

    tensors = [
        tf.io.parse_tensor((data / "in" / str(number)).read_bytes(), tf.as_dtype(dtype))
        for number, (_, dtype) in enumerate(request.inputs)
    ]
    if request.peer == XLA and opened.no_xla:
        return {"failed": opened.no_xla}
    specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]
    names = [name for name, _ in request.inputs]

    def body(*arguments: tf.Tensor) -> Mapping[str, tf.Tensor]:
        return opened.call(dict(zip(names, arguments, strict=True)))

    last: list[Mapping[str, tf.Tensor]] = []
    engine_op.reset_stats()
    try:
        jit = request.peer == XLA
        if opened.as_it_is and not jit:
            function = trace_as_it_is(body, specs, names)
        else:
            function = tf.function(body, autograph=False, jit_compile=jit).get_concrete_function(*specs)

        def enqueue() -> None:
            last[:] = [function(*tensors)]

        timing = timed(enqueue, lambda: [value.numpy() for value in last[0].values()], request.effort)
    except (tf.errors.OpError, ValueError, TypeError, NotImplementedError) as error:
        return {"failed": _why(error)}
    (data / request.peer).mkdir()
    for name, value in last[0].items():
        (data / request.peer / name.replace("/", "_")).write_bytes(tf.io.serialize_tensor(value).numpy())
    stats = engine_op.stats() if request.peer == STITCHED else {}
    return {
        "timing": asdict(timing),
        "engine_calls": sum(region["engine_calls"] for region in stats.values()),
        "fallbacks": {name: dict(region["fallbacks"]) for name, region in stats.items() if region["fallbacks"]},
    }


def _why(error: Exception) -> str:
    """An error of TensorFlow or XLA in one line; of a list of ops without an XLA kernel their types."""
    import tensorflow as tf

    from stages.model import first_line
    from stages.reference import error_line

    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lacking = list(dict.fromkeys(re.findall(r"(\w+) \(No registered '\w+' OpKernel for XLA", text)))
    if lacking:
        return f"XLA can't compile {', '.join(lacking)}"
    return error_line(error) if isinstance(error, tf.errors.OpError) else first_line(error)
