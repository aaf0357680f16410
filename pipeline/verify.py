"""The stitched model against pure TensorFlow, on the same inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.report import OutputError, Report, Verification
from stages import progress, storage
from stages.artifacts import FrozenGraph, ShapeRange, Source, StitchedGraph, Tensor
from stages.compare import Array, Difference, difference, worst
from stages.errors import ModelError, VerifyError
from stages.graph import Graph
from stages.metrics import METRICS, Metric, default_limit, metric_name, output_error
from stages.reference import Reference, error_line, ieee_float32
from stages.samples import Samples, verification_samples
from stages.samples import read as read_samples
from stages.saved_models import load_saved_model
from stages.signature_defs import argument_names
from stages.sizes import size_ranges

if TYPE_CHECKING:
    import tensorflow as tf

Sample = Mapping[str, Array]


def verify(
    saved_model: Path,
    frozen: FrozenGraph,
    samples: Sequence[Sample],
    *,
    tolerance: float,
    metric: Metric = "relative",
) -> Verification:
    """Run a stitched SavedModel and the frozen graph that it was made from, and compare every output.

    Args:
        samples: inputs by tensor name of the frozen graph.
        tolerance: largest error that passes.
        metric: what an error is, see `metrics`.

    Raises:
        VerifyError: TensorFlow can't run the original on the samples, the stitched model can't be loaded or run, or the
            metric can't be had.
    """
    from stages import engine_op

    names = [tensor.name for tensor in frozen.outputs]
    reference = Reference(Graph(frozen))
    expected = []
    for number, sample in enumerate(samples):
        progress.report(number, 2 * len(samples), f"sample {number + 1}, original")
        values = reference.run(names, sample)
        expected.append([values[name] for name in names])
    reference.close()
    keywords = dict(zip((tensor.name for tensor in frozen.inputs), frozen.input_names, strict=True))
    calls = [{keywords[name]: array for name, array in sample.items()} for sample in samples]
    engine_op.reset_stats()
    actual = []
    for number, outputs in enumerate(run_signature(saved_model, frozen.source.signature, calls), start=1):
        progress.report(len(calls) + number, 2 * len(calls), f"sample {number}, stitched")
        actual.append(outputs)
    found = [[a[name] for name in frozen.output_names] for a in actual]
    return judge(expected, found, frozen.output_names, calls, tolerance, metric=metric)


def verify_folder(
    folder: Path,
    *,
    shapes: Sequence[ShapeRange] = (),
    samples: Samples = None,
    max_error: float | None = None,
    metric: Metric | None = None,
) -> Verification:
    """Compare a stitched model's engines with its own native segments, which are TensorFlow's ops: the original is not
    needed, so that it can be done on the machine where the model will serve.

    Args:
        folder: what `convert` or `stitch` wrote.
        shapes, samples: as in `Config`.
        max_error: largest error; None: as when the model was converted, by `report.json`, and fp32's without one.
        metric: None: likewise.

    Raises:
        VerifyError: there is no stitched model in the folder, or it can't be run; or it was converted by a metric of the
            user's own, and none is given.
        SplitError: shapes or samples don't fit it.
    """
    from stages import engine_op

    signature, precision, before = "serving_default", "fp32", Verification((), (), 0, {}, None)
    if (folder / "report.json").exists():
        report = Report.read(folder / "report.json")
        signature, precision, before = report.signature, report.precision, report.verification
    elif (folder / "artifact.json").exists():
        signature = storage.load(StitchedGraph, folder).signature
    saved_model = folder / "saved_model"
    interface = interface_of(saved_model, signature)
    given = read_samples(interface, samples)
    drawn = verification_samples(interface, size_ranges(interface, shapes, given), given)
    keywords = dict(zip((tensor.name for tensor in interface.inputs), interface.input_names, strict=True))
    calls = [{keywords[name]: array for name, array in sample.items()} for sample in drawn]
    with engine_op.native_only():
        expected = list(run_signature(saved_model, signature, calls))
    engine_op.reset_stats()
    actual = list(run_signature(saved_model, signature, calls))
    names = interface.output_names
    wanted, tolerance = _as_before(before, precision, metric, max_error)
    found = [[a[n] for n in names] for a in actual]
    return judge([[e[n] for n in names] for e in expected], found, names, calls, tolerance, metric=wanted)


def _as_before(
    before: Verification, precision: str, metric: Metric | None, max_error: float | None
) -> tuple[Metric, float]:
    """The metric and the largest error: those given, else those of the conversion."""
    wanted = before.metric if metric is None else metric
    if isinstance(wanted, str) and wanted not in METRICS:
        raise VerifyError(
            f"the model was converted by an error metric of the user's own, {wanted}",
            "give it from Python: verify_folder(folder, metric=…), or --error-metric relative and --max-error",
        )
    if max_error is not None:
        return wanted, max_error
    known = before.tolerance if metric_name(wanted) == before.metric else None
    return wanted, default_limit(wanted, precision) if known is None else known


def interface_of(saved_model: Path, signature: str) -> FrozenGraph:
    """A stitched SavedModel's signature as the interface of a graph (without the graph).

    Raises:
        VerifyError: there is no such model or signature, or it can't be loaded.
    """
    function = _load(saved_model, signature)

    def tensors(specs: Mapping[str, tf.TensorSpec]) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(f"{name}:0", spec.dtype.name, None if spec.shape.rank is None else tuple(spec.shape.as_list()))
            for name, spec in specs.items()
        )

    inputs, outputs = function.structured_input_signature[1], function.structured_outputs
    source = Source("saved_model", str(saved_model.absolute()), signature)
    return FrozenGraph(saved_model, source, tensors(inputs), tensors(outputs), tuple(inputs), tuple(outputs))


def _load(saved_model: Path, signature: str) -> tf.types.experimental.ConcreteFunction:
    from stages import engine_op

    engine_op.load()
    if not saved_model.is_dir():
        raise VerifyError(f"{saved_model}: no such folder", "give the folder that convert wrote")
    try:
        signatures: Mapping[str, object] = load_saved_model(saved_model).signatures  # type: ignore[attr-defined]
    except ModelError as error:
        raise VerifyError(error.problem, "convert the model again") from error
    if signature not in signatures:
        raise VerifyError(f"{saved_model}: has no signature {signature}", f"one of {', '.join(signatures)}")
    return signatures[signature]


def run_signature(
    saved_model: Path, signature: str, calls: Sequence[Mapping[str, Array]]
) -> Iterator[dict[str, Array]]:
    """The outputs of a SavedModel's signature for each call's keyword inputs.

    Raises:
        VerifyError: it can't be loaded, or a call fails.
    """
    import tensorflow as tf

    function = _load(saved_model, signature)
    try:
        dtypes = {name: spec.dtype for name, spec in function.structured_input_signature[1].items()}
        for call in calls:
            arrays = {argument: call[name] for name, argument in argument_names(call).items()}
            with ieee_float32():
                outputs = function(**{name: tf.constant(array, dtypes[name]) for name, array in arrays.items()})
            yield {name: np.asarray(value.numpy()) for name, value in outputs.items()}
    except tf.errors.OpError as error:
        raise VerifyError(f"{saved_model}: can't be run: {error_line(error)}", "convert the model again") from error


def judge(
    expected: Sequence[Sequence[Array]],
    actual: Sequence[Sequence[Array]],
    names: Sequence[str],
    calls: Sequence[Mapping[str, Array]],
    tolerance: float,
    *,
    metric: Metric = "relative",
) -> Verification:
    """Compare runs output by output, with what the engines did meanwhile.

    Raises:
        VerifyError: the metric can't be had.
    """
    from stages import engine_op

    outputs = []
    for i, name in enumerate(names):
        wanted, got = [run[i] for run in expected], [run[i] for run in actual]
        gap: Difference = worst([difference(a, b) for a, b in zip(wanted, got, strict=True)])
        error = output_error(metric, name, wanted, got)
        outputs.append(OutputError(name, gap.max_abs, gap.max_rel, gap.why, error))
    stats = engine_op.stats()
    fallbacks = {region: dict(s["fallbacks"]) for region, s in stats.items() if s["fallbacks"]}
    return Verification(
        inputs=tuple({name: list(array.shape) for name, array in call.items()} for call in calls),
        outputs=tuple(outputs),
        engines_run=sum(s["engine_calls"] for s in stats.values()),
        fallbacks=fallbacks,
        passed=not fallbacks and all(output.measured <= tolerance for output in outputs),
        tolerance=tolerance,
        metric=metric_name(metric),
    )


def explain(check: Verification) -> str:
    """Why a verification failed, in one line."""
    problems = [
        f"output {o.name}: {o.why or f'{check.metric} error {o.measured:.1e}'} (allowed {check.tolerance:.0e})"
        for o in check.outputs
        if not o.measured <= (check.tolerance or 0)
    ]
    problems += [
        f"{region}: TensorFlow ran instead {count} times: {reason}"
        for region, by_reason in check.fallbacks.items()
        for reason, count in by_reason.items()
    ]
    return "; ".join(problems)
