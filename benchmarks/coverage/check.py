"""One op in one dtype: translated? taken and built by TensorRT for RTX? equal to TensorFlow?"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from benchmarks.coverage.models import Model, broadcast, build
from stages.artifacts import ShapeRange
from stages.backends.base import BuildOptions
from stages.backends.isolated import Worker
from stages.errors import ExportError, VerifyError
from stages.execute import run_model
from stages.onnx_files import save_model
from stages.screen import BOUNDARY_DTYPES
from stages.translate import UNSAFE, Translation, translatable_ops, translate

if TYPE_CHECKING:
    from tensorflow.core.framework.op_def_pb2 import OpDef

Result: TypeAlias = dict[str, str]
"""What was found, by step: `yes` or why not. A step that was not reached is absent."""

TOLERANCES = {"float16": 4e-3, "bfloat16": 3e-2}
VARIANTS = (("usual", 3, False), ("one", 1, False), ("none", 0, False), ("edges", 3, True))
"""Name, size of open axes, odd values or not."""
_WORDS = 160


def check(op: OpDef, dtype: str, worker: Worker) -> Result:
    """Look at one op in one dtype (empty: it has no choice)."""
    try:
        model = build(op, dtype)
        usual = _run(model, model.values(3, False, 0))
    # Whatever TensorFlow raises says that it has no such op here.
    except Exception as error:  # noqa: BLE001
        return {"tensorflow": _short(error)}
    if op.name in UNSAFE:
        return {"translated": f"denied: {UNSAFE[op.name]}"}
    if op.name not in translatable_ops():
        return {"translated": "tf2onnx has no translation"}
    if odd := [kind for _, kind in model.feeds.values() if kind not in BOUNDARY_DTYPES]:
        return {"translated": f"{odd[0]} does not enter an engine"}
    if odd := [value.dtype.name for value in usual if value.dtype.name not in BOUNDARY_DTYPES]:
        return {"translated": f"{odd[0]} does not leave an engine"}
    try:
        translation = translate(model.graph_def, list(model.feeds), model.outputs)
    except ExportError as error:
        return {"translated": _short(error)}
    if translation.unsupported:
        return {"translated": _short(translation.unsupported[0][2])}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(translation.model, path)
        found = {"translated": "yes", **_compared(model, path), **_broadcast(op, dtype, Path(folder))}
        return {**found, **_built(model, translation, path, worker)}


def _built(model: Model, translation: Translation, path: Path, worker: Worker) -> Result:
    support = worker.check(path)
    if not support.accepted:
        why = "; ".join(refusal.message for refusal in support.refusals) or support.failure
        return {"parsed": _short(why)}
    if support.shape_inputs:
        return {"parsed": "yes", "built": "an input decides shapes"}
    feeds = list(model.feeds.values())
    spans = []
    for value in translation.model.graph.input:
        shape = feeds[int(value.name.removeprefix("input_"))][0].shape
        if None in shape:
            sizes = (tuple(batch if size is None else size for size in shape) for batch in (1, 3, 8))
            spans.append(ShapeRange(value.name, *sizes))
    options = BuildOptions(profiles=(tuple(spans),) if spans else ())
    outcome = worker.build(path, path.with_suffix(".plan"), options)
    return {"parsed": "yes", "built": "yes" if outcome.built else _short(outcome.failure)}


def _broadcast(op: OpDef, dtype: str, folder: Path) -> Result:
    model = broadcast(op, dtype)
    if model is None:
        return {}
    try:
        translation = translate(model.graph_def, list(model.feeds), model.outputs)
    except ExportError as error:
        return {"broadcast": _short(error)}
    if translation.unsupported:
        return {"broadcast": _short(translation.unsupported[0][2])}
    path = folder / "broadcast.onnx"
    save_model(translation.model, path)
    (usual,) = VARIANTS[:1]
    found = _compared(model, path, (usual,))
    return {"broadcast": found[usual[0]]} if found else {}


def _compared(model: Model, path: Path, variants: tuple[tuple[str, int, bool], ...] = VARIANTS) -> Result:
    found: Result = {}
    for name, batch, edges in variants:
        for seed in (0, 1):
            values = model.values(batch, edges, seed)
            try:
                expected = _run(model, values)
            except Exception:  # noqa: BLE001 - TensorFlow refuses such values: nothing to compare
                continue
            if not all(map(_fits, expected, model.shapes)):
                continue  # oneDNN's convolution of an empty batch returns the input's shape
            try:
                with np.errstate(all="ignore"):
                    found[name] = _difference(expected, _run_onnx(path, model, values))
            except VerifyError as error:
                found[name] = f"not run: {_short(error.problem.replace(str(path), path.name))}"
            if found[name] != "yes":
                break
    return found


def _run(model: Model, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        tf.import_graph_def(model.graph_def, name="")
        return [np.asarray(value) for value in session.run(list(model.outputs), dict(values))]


def _fits(value: np.ndarray, shape: tuple[int | None, ...] | None) -> bool:
    if shape is None or len(shape) != value.ndim:
        return shape is None
    return all(size in (None, given) for size, given in zip(shape, value.shape, strict=True))


def _run_onnx(path: Path, model: Model, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    import onnx

    given = [values[name] for name in model.feeds]
    read = [value.name for value in onnx.load(path).graph.input]
    results = run_model(path, {name: given[int(name.removeprefix("input_"))] for name in read})
    return [results[f"output_{i}"] for i in range(len(model.outputs))]


def _difference(expected: list[np.ndarray], actual: list[np.ndarray]) -> str:
    return next(_differences(expected, actual), "yes")


def _differences(expected: list[np.ndarray], actual: list[np.ndarray]) -> Iterator[str]:
    for wanted, got in zip(expected, actual, strict=True):
        if wanted.shape != got.shape:
            yield f"shape {got.shape} for {wanted.shape}"
        elif wanted.dtype != got.dtype:
            yield f"dtype {got.dtype} for {wanted.dtype}"
        elif wanted.dtype.kind in "biu":
            wrong = wanted != got
            if wrong.any():
                yield f"{got[wrong][0]} for {wanted[wrong][0]}"
        else:
            a, b = wanted.astype(np.float64), got.astype(np.float64)
            tolerance = TOLERANCES.get(wanted.dtype.name, 1e-5)
            finite = a[np.isfinite(a)]
            # Sums of values of all sizes are compared with the largest, but for odd ones.
            scale = min(float(np.abs(finite).max(initial=0.0)), 1e4)
            right = np.isclose(b, a, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
            if not right.all():
                yield f"{got[~right][0]:.6g} for {wanted[~right][0]:.6g}"


def _short(words: object) -> str:
    text = str(words)
    if "No OpKernel" in text:
        return "no kernel"
    lines = [line.strip() for line in str(words).splitlines() if line.strip()]
    if lines and lines[0] == "Graph execution error:":
        text = str(words)
    if "No OpKernel" in text:
        return "no kernel"
    lines = [line for line in lines if "No OpKernel" in line] or lines[-1:]
    return " ".join(lines)[:_WORDS]
