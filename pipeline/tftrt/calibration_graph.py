"""INT8 in TensorFlow 1: a graph that collects while it runs, and the graph to deploy that is made of what it collected.

The calibration graph is the original one, cut into the regions that will become engines. Before a region runs, a
`PyFunc` hands its inputs to the region's calibrator, which keeps ranges, not inputs; then TensorFlow runs the region's own
ops. As with TF-TRT, what is collected lies in the process that made the graph, which must therefore also run and finish it.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from pipeline.config import Config
from pipeline.report import Report
from pipeline.tftrt.conversion import Conversion
from pipeline.tftrt.graph_defs import converted, embedded, graft
from stages.engine_op.interface import Interface
from stages.errors import ArgumentError, CalibrationError, OrderError
from stages.precision.calibration import Calibrator
from stages.precision.table import CalibrationTable, merged

if TYPE_CHECKING:
    import tensorflow as tf
    from tensorflow.core.framework.node_def_pb2 import NodeDef

    from stages.compare import Array

_MARKER = "graftrt/calibration"
"""The constant by whose value a calibration graph is known."""
_PLANS = "graftrt/plans/"
_AGAIN = 'create_inference_graph(…, precision_mode="INT8") makes one'


@dataclass(frozen=True, slots=True)
class Source:
    """What a calibration graph was made of, and how it is to be converted; arguments of `graft`."""

    graph_def: tf.compat.v1.GraphDef
    outputs: Sequence[object] | None
    config: Config
    batches: Sequence[tuple[int, int]] | None


@dataclass(slots=True, weakref_slot=True)
class _Collection:
    """What one calibration graph has collected. Several sessions may run it at once."""

    source: Source
    calibrators: Mapping[str, Calibrator]
    inputs: dict[str, Array] = field(default_factory=dict)
    """The latest value of each Placeholder, by its name: real inputs to verify the result on."""
    placeholders: set[str] = field(default_factory=set)
    functions: list[tf.Graph] = field(default_factory=list)
    """TensorFlow keeps a Python function for as long as the graph that it was made in."""
    lock: threading.Lock = field(default_factory=threading.Lock)


_See: TypeAlias = "Callable[[Sequence[Array]], None]"
_collections: dict[str, _Collection] = {}


def make(source: Source) -> tf.compat.v1.GraphDef:
    """The graph that collects while it runs; what is fetched keeps its name.

    Raises:
        ArgumentError, ConversionError: as `graft`.
    """
    with ExitStack() as resources:
        scratch = Path(resources.enter_context(TemporaryDirectory(prefix="graftrt-calibration-")))
        conversion = converted(source.graph_def, source.outputs, _in_float32(source.config), source.batches)
        resources.callback(conversion.remove)
        calibrators = {
            region.name: Calibrator(_model(conversion, region.name), source.config.calibration, scratch=scratch)
            for region in conversion.report.regions
        }
        if not calibrators:
            raise ArgumentError("INT8: there is nothing to calibrate, no op is in an engine", "precision_mode='FP32'")
        collection = _Collection(source, calibrators)
        key = uuid.uuid4().hex
        graph_def = _Writer(collection, key).collecting(embedded(conversion))
        weakref.finalize(collection, resources.pop_all().close)  # at the latest when the process ends
    _collections[key] = collection
    return graph_def


def finish(graph_def: tf.compat.v1.GraphDef) -> tuple[tf.compat.v1.GraphDef, Report]:
    """The graph to deploy. What was collected is dropped.

    Raises:
        ArgumentError: the graph is no calibration graph.
        OrderError: it was made by another process, is finished already, or was not run yet.
        ConversionError: as `graft`.
    """
    key = _key(graph_def)
    if key is None:
        raise ArgumentError("calibration_graph_def is no calibration graph", _AGAIN)
    if key not in _collections:
        raise OrderError(
            "the calibration graph was made by another process, or is finished already",
            "make, run and finish it in one process: what it collects is in that process's memory",
        )
    collection = _collections[key]
    with collection.lock:
        seen = [calibrator for calibrator in collection.calibrators.values() if calibrator.runs]
        if not seen:
            raise OrderError("the calibration graph was not run yet", "run it on real inputs, in this process")
        table = _table(collection)
        source = collection.source
        with TemporaryDirectory(prefix="graftrt-calibration-") as folder:
            path = Path(folder) / "calibration.json"
            table.write(path)
            config = replace(source.config, calibration_table=path, samples=_samples(collection))
            result = graft(source.graph_def, source.outputs, config, source.batches)
    del _collections[key]
    return result


def _in_float32(config: Config) -> Config:
    return replace(config, precision="fp32", verify=False)


def _model(conversion: Conversion, region: str) -> Path:
    return conversion.folder / "regions" / region / "model.onnx"


def _table(collection: _Collection) -> CalibrationTable:
    """Regions in branches that no run took have no ranges, and are not quantised."""
    method = collection.source.config.calibration
    unseen = CalibrationTable(method, 0, {c.digest: {} for c in collection.calibrators.values()})
    return merged(
        [
            unseen,
            *(
                c.table(tolerated=collection.source.config.int8_error)
                for c in collection.calibrators.values()
                if c.runs
            ),
        ],
        method,
    )


def _samples(collection: _Collection) -> list[dict[str, Array]] | None:
    """The latest inputs, with no more rows than the profiles have; None where a Placeholder was not fed yet."""
    most = max((high for _, high in collection.source.batches or ()), default=None)
    placeholders = {node.name: node for node in collection.source.graph_def.node if node.op == "Placeholder"}
    if collection.inputs.keys() != collection.placeholders:
        return None
    found = {}
    for name, array in collection.inputs.items():
        dims = placeholders[name].attr["shape"].shape.dim
        found[name] = array[:most] if array.ndim and dims and dims[0].size < 0 else array
    return [found]


def _key(graph_def: tf.compat.v1.GraphDef) -> str | None:
    for node in graph_def.node:
        if node.name == _MARKER:
            return str(node.attr["value"].tensor.string_val[0].decode())
    return None


class _Writer:
    """Puts a collecting `PyFunc` and the region's own ops where an `EngineCall` was, in functions too."""

    def __init__(self, collection: _Collection, key: str) -> None:
        self._collection = collection
        self._key = key

    def collecting(self, graph_def: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
        import tensorflow as tf

        result = tf.compat.v1.GraphDef()
        result.CopyFrom(graph_def)
        del result.node[:]
        result.node.append(self._marker(_MARKER))
        for node in graph_def.node:
            if node.op == "Const" and node.name.startswith(_PLANS):
                result.node.append(_constant(node.name, b""))
            elif node.op == "Placeholder":
                result.node.extend(self._watched(node))
            elif node.op == "EngineCall":
                result.node.extend(self._collected(node, _MARKER))
            else:
                result.node.append(node)
        self._read_watched(result)
        for function in result.library.function:
            calls = [node for node in function.node_def if node.op == "EngineCall"]
            if not calls:
                continue
            others = [node for node in function.node_def if node.op != "EngineCall"]
            made = [self._marker(_MARKER), *(n for call in calls for n in self._collected(call, f"{_MARKER}:output:0"))]
            for node in others:
                for place, name in enumerate(node.input):
                    node.input[place] = _renamed(name, calls)
            for name, end in function.ret.items():
                function.ret[name] = _renamed(end, calls)
            for node in made:
                for place, name in enumerate(node.input):
                    node.input[place] = _renamed(name, calls)
            del function.node_def[:]
            function.node_def.extend([*others, *made])
        return result

    def _marker(self, name: str) -> NodeDef:
        return _constant(name, self._key.encode())

    def _collected(self, call: NodeDef, marker: str) -> list[NodeDef]:
        import tensorflow as tf

        interface = Interface.from_json(call.attr["interface"].s.decode())
        calibrator = self._collection.calibrators[interface.region]
        types = [*call.attr["Tin"].list.type, *call.attr["Thost"].list.type]
        fed = [
            (place, port.binding) for place, port in enumerate(interface.inputs) if port.binding in calibrator.inputs
        ]

        def observe(arrays: Sequence[Array]) -> None:
            calibrator.observe({str(name): array for (_, name), array in zip(fed, arrays, strict=True)})

        values = [call.input[place] for place, _ in fed]
        ends = [tf.as_dtype(types[place]) for place, _ in fed]
        collect = self._py_func(f"{call.name}/collect", marker, values, ends, observe)
        collect.input.extend(name for name in call.input if name.startswith("^"))
        native = tf.compat.v1.NodeDef(name=call.name, op="PartitionedCall")
        captured = len(call.attr["Tcap"].list.type)
        native.input.extend(call.input[: len(types) + captured])
        native.input.append(f"^{collect.name}")
        native.attr["f"].func.CopyFrom(call.attr["native_segment"].func)
        native.attr["Tin"].list.SetInParent()
        native.attr["Tin"].list.type.extend([*types, *call.attr["Tcap"].list.type])
        native.attr["Tout"].CopyFrom(call.attr["Tout"])
        return [collect, native]

    def _watched(self, placeholder: NodeDef) -> list[NodeDef]:
        """A Placeholder, and an Identity of it that is read once the value was seen."""
        import tensorflow as tf

        inputs, name = self._collection.inputs, placeholder.name
        self._collection.placeholders.add(name)

        def see(arrays: Sequence[Array]) -> None:
            if arrays[0].dtype.kind == "f" and np.isnan(arrays[0]).any():
                raise CalibrationError(f"calibration: {name} contains NaN", "feed inputs without NaN")
            inputs[name] = np.array(arrays[0])

        dtype = placeholder.attr["dtype"]
        seen = self._py_func(f"{_MARKER}/{name}/see", _MARKER, [name], [tf.as_dtype(dtype.type)], see)
        identity = tf.compat.v1.NodeDef(name=f"{_MARKER}/{name}", op="Identity", input=[name, f"^{seen.name}"])
        identity.attr["T"].CopyFrom(dtype)
        return [placeholder, seen, identity]

    def _read_watched(self, graph_def: tf.compat.v1.GraphDef) -> None:
        placeholders = {node.name for node in graph_def.node if node.op == "Placeholder"}
        for node in graph_def.node:
            if node.name.startswith(_MARKER):
                continue
            for place, name in enumerate(node.input):
                if name.partition(":")[0] in placeholders:
                    node.input[place] = f"{_MARKER}/{name.partition(':')[0]}"

    def _py_func(self, name: str, marker: str, values: Sequence[str], dtypes: Sequence[tf.DType], see: _See) -> NodeDef:
        """A node that hands its inputs to `see`, and the key of its graph, by which it knows that it is in the right process:
        TensorFlow numbers Python functions anew in each."""
        import tensorflow as tf

        key, lock = self._key.encode(), self._collection.lock

        def collect(found: bytes, *arrays: Array) -> None:
            if found != key:
                raise ValueError("a calibration graph runs only in the process that made it")
            with lock:
                see(arrays)

        graph = tf.Graph()
        with graph.as_default():
            tf.numpy_function(collect, [tf.compat.v1.placeholder(t) for t in (tf.string, *dtypes)], [])
        self._collection.functions.append(graph)
        node = tf.compat.v1.NodeDef()
        node.CopyFrom(next(op for op in graph.get_operations() if op.type == "PyFunc").node_def)
        node.name = name
        del node.input[:]
        node.input.extend([marker, *values])
        return node


def _renamed(name: str, calls: Sequence[NodeDef]) -> str:
    """In a function tensors are named by the op's output argument, and a call's is `output`."""
    parts = name.split(":")
    if len(parts) == 3 and any(call.name == parts[0] for call in calls):
        return f"{parts[0]}:output:{parts[2]}"
    return name


def _constant(name: str, value: bytes) -> NodeDef:
    import tensorflow as tf

    node = tf.compat.v1.NodeDef(name=name, op="Const")
    node.attr["dtype"].type = tf.string.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value, tf.string))
    return node
