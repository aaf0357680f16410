"""`precision="auto"` on whole models: what is lowered, what is kept higher and why, and what is never delivered."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixtures import precisions, vision
from pipeline import Config, Report, convert, run
from pipeline.cli import main
from pipeline.verify import verify_folder
from stages import onnx_files, precision
from stages.artifacts import Choice, Region
from stages.autoprecision import demote
from stages.autoprecision.mixed import rounded
from stages.autoprecision.trial import in_order
from stages.errors import ConversionError, VerifyError
from stages.execute import Session
from stages.freeze import freeze
from stages.graph import Graph
from tests.conftest import Converted, relative_error

Convert = Callable[..., Converted]
ON_CPU = {"backend": "onnxruntime", "precision": "auto", "min_region": 1}


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """A model with a layer that overflows in float16, converted in auto without samples."""
    folder = tmp_path_factory.mktemp("loud")
    out = folder / "out"
    return Converted(out, convert(str(precisions.loud().save(folder / "model")), out, Config(**ON_CPU)))  # type: ignore[arg-type]


def test_a_layer_that_overflows_in_fp16_is_found_kept_and_reported(loud: Converted) -> None:
    (region,) = loud.report.regions
    assert [(kept.layer.split("/")[-1], kept.precision, kept.error) for kept in region.kept_higher] == [
        ("loud", "fp32", None)
    ]
    (kept,) = region.kept_higher
    assert "infinite" in kept.why
    assert kept.ops
    assert set(kept.ops) <= set(region.ops)
    assert region.precisions == {"fp16": len(region.ops) - len(kept.ops), "fp32": len(kept.ops)}
    assert [engine.precision for engine in region.engines] == ["fp16"]
    assert region.engines[0].types is not None
    asked = {kind: len(nodes) for kind, nodes in region.engines[0].types.asked.items()}
    assert asked == {"float16": 5, "float32": 1}
    assert 0 < (region.auto_error or 0) <= 1e-2
    assert "judged on random inputs" in region.auto_note
    expected = precisions.loud().run()["classes"]
    assert relative_error(expected, loud.run(precisions.loud().inputs)["classes"]) <= 1e-2


def test_the_summary_and_the_page_say_what_is_kept(loud: Converted) -> None:
    summary = loud.report.summary()
    assert "kept in fp32" in summary
    assert "int8 was not tried: it takes --samples" in summary
    page = (loud.out / "report.html").read_text()
    assert "kept in fp32" in page
    assert "fp16, 1 layer higher" in page
    body = json.loads((loud.out / "report.json").read_text())
    assert body["regions"][0]["kept_higher"][0]["precision"] == "fp32"
    assert Report.read(loud.out / "report.json") == loud.report


def test_where_no_gpu_is_the_types_of_an_engine_are_not_confirmed_and_say_why(loud: Converted) -> None:
    types = loud.report.regions[0].engines[0].types
    assert types is not None
    assert types.confirmed is None
    assert types.why_not == "onnxruntime has no engine inspector"


@pytest.mark.slow
def test_tensorrt_for_rtx_builds_what_was_chosen_in_the_types_that_were_asked_for(converted: Convert) -> None:
    pytest.importorskip("tensorrt_rtx")
    result = converted(precisions.loud(), precision="auto", backend="tensorrt_rtx,onnxruntime")
    engine = result.report.regions[0].engines[0]
    assert (engine.backend, engine.precision, engine.note) == ("tensorrt_rtx", "fp16", "")
    assert engine.types is not None
    assert engine.types.network == {"float16": 5, "float32": 1}
    assert engine.types.confirmed is not False


def test_with_samples_int8_is_tried_first(converted: Convert) -> None:
    samples = [{"image": vision.small_cnn_inputs(4, seed)["image"]} for seed in range(4)]
    result = converted(vision.small_cnn(), samples=samples, max_error=0.3, **ON_CPU)
    (region,) = result.report.regions
    assert region.precisions == {"int8": len(region.ops)}
    assert region.kept_higher == ()
    assert region.engines[0].types is not None
    assert "int8" in region.engines[0].types.asked


def test_top1_counts_answers_and_is_what_verification_goes_by(converted: Convert) -> None:
    result = converted(vision.small_cnn(), error_metric="top1", max_error=0.01, **ON_CPU)
    check = result.report.verification
    assert (check.metric, check.tolerance, check.passed) == ("top1", 0.01, True)
    assert check.outputs[0].error == 0
    assert check.outputs[0].max_rel_error > 0
    assert "largest top1 error" in result.report.summary()
    again = verify_folder(result.out)
    assert (again.metric, again.tolerance, again.passed) == ("top1", 0.01, True)


def test_a_function_of_the_user_decides(converted: Convert) -> None:
    seen: list[float] = []

    def only_fp32(expected: np.ndarray, actual: np.ndarray) -> float:
        seen.append(relative_error(expected, actual))
        return 5.0 if seen[-1] > 1e-5 else 0.0

    result = converted(vision.small_cnn(), error_metric=only_fp32, max_error=1.0, **ON_CPU)
    (region,) = result.report.regions
    assert seen
    assert result.report.verification.metric == "only_fp32"
    assert set(region.kept_higher[0].ops) < set(region.ops)
    assert {kept.error for kept in region.kept_higher} == {5.0}
    assert result.report.verification.outputs[0].max_rel_error <= 1e-5
    with pytest.raises(VerifyError, match="only_fp32"):
        verify_folder(result.out)
    assert verify_folder(result.out, metric=only_fp32, max_error=1.0).passed


def test_a_trial_rounds_what_onnx_runtime_alone_would_not(loud: Converted, tmp_path: Path) -> None:
    inputs = {"input_0": np.random.default_rng(0).random((2, 16), np.float32)}
    results = []
    for change in (lambda model: model, rounded):
        model, weights = onnx_files.load_model(loud.out / "regions/region_0/model.onnx")
        onnx_files.save_model(change(precision.convert(model, "fp16", weights)), tmp_path / "m.onnx", weights)
        results.append(Session(tmp_path / "m.onnx", optimise=False).run(inputs)["output_0"])
    assert np.isfinite(results[0]).all(), "if this fails, ONNX Runtime rounds by itself now"
    assert np.isnan(results[1]).all()


def test_a_region_comes_behind_those_that_it_depends_on(tmp_path: Path) -> None:
    graph = Graph(freeze(vision.small_cnn(), tmp_path / "frozen"))
    names = [graph.nodes[i].name for i in graph.computing()]
    parts = [names[:3], names[3:6], names[6:]]
    last, middle, first = (Region(f"region_{i}", tuple(ops), (), (), tmp_path, "") for i, ops in enumerate(parts[::-1]))
    assert in_order(graph, [last, middle, first]) == [first, middle, last]


def test_the_region_that_adds_most_goes_back_first_and_then_the_others() -> None:
    lowered = [
        Choice("region_0", "fp16", {"fp16": ("a",)}, 0.01, 0.01, 1),
        Choice("region_1", "int8", {"int8": ("b",), "fp32": ("c",)}, 0.09, 0.08, 3),
        Choice("region_2", "fp16", {"fp16": ("d",)}, 0.1, 0.01, 1),
    ]
    once = demote(lowered)
    assert once is not None
    assert [choice.precision for choice in once] == ["fp16", "fp32", "fp16"]
    assert once[1].ops == {"fp32": ("b", "c")}
    twice = demote(demote(once) or ())
    assert twice is not None
    assert {choice.precision for choice in twice} == {"fp32"}
    assert demote(twice) is None


def test_regions_share_the_limit(converted: Convert) -> None:
    result = converted(vision.detector(), **ON_CPU)
    errors = [region.auto_error or 0.0 for region in result.report.regions]
    assert max(errors) <= 1e-2
    assert result.report.verification.passed


def test_the_body_of_a_loop_is_chosen_by_its_own_outputs(converted: Convert) -> None:
    result = converted(vision.conv_loop(), **ON_CPU)
    assert result.report.verification.passed
    notes = [r.auto_note for r in result.report.regions if any("body" in op for op in r.ops)]
    assert not [note for note in notes if "compared where the region ends" not in note]


def test_a_model_whose_engines_break_the_limit_is_not_delivered_but_backed_off(
    converted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = run.verify
    rounds = []

    def strict(*arguments: object, **settings: object) -> object:
        check = honest(*arguments, **settings)  # type: ignore[arg-type]
        rounds.append(check)
        # As if the engines were further off than the trials: only fp32's error passes.
        worst = max(output.max_rel_error for output in check.outputs)
        return replace(check, passed=worst <= 1e-5)

    monkeypatch.setattr(run, "verify", strict)
    result = converted(vision.small_cnn(), **ON_CPU)
    assert len(rounds) == 2
    (region,) = result.report.regions
    assert [engine.precision for engine in region.engines] == ["fp32"]
    assert "too large" in region.auto_note
    assert max(output.max_rel_error for output in result.report.verification.outputs) <= 1e-5


def test_a_limit_that_fp32_breaks_is_a_stated_failure(converted: Convert, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="differs from TensorFlow"):
        converted(vision.small_cnn(), max_error=1e-12, **ON_CPU)
    assert not (tmp_path / "out").exists()


BAD: dict[str, dict[str, object]] = {
    "is unknown": {"error_metric": "rmse"},
    "leaves auto nothing": {"max_error": 0.0},
    "no largest error": {"max_error": -1.0},
    "no limit of its own": {"error_metric": relative_error},
}


@pytest.mark.parametrize("words", BAD)
def test_settings_without_sense_are_refused(words: str) -> None:
    with pytest.raises(ConversionError, match=words) as caught:
        Config(precision="auto", **BAD[words])  # type: ignore[arg-type]
    assert caught.value.remedy


def test_a_metric_that_returns_no_number_stops_the_conversion(converted: Convert, tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"error metric <lambda> of output .*: returned nan"):
        converted(vision.small_cnn(), error_metric=lambda a, b: float("nan"), max_error=1, **ON_CPU)
    assert not (tmp_path / "out").exists()


def test_the_command_line_refuses_an_unknown_metric(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["convert", "keras:MobileNetV2", str(tmp_path / "out"), "--error-metric", "rmse"])
    assert caught.value.code == 2
