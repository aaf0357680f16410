"""The report: what a person reads, and the JSON that a program reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.report import (
    EngineReport,
    OutputError,
    RegionReport,
    Report,
    StageTime,
    Verification,
    make_report,
)
from stages.artifacts import (
    Engine,
    EngineSet,
    FailedRegion,
    Fingerprint,
    FrozenGraph,
    LeftOp,
    Partition,
    Reason,
    Region,
    Source,
    Tensor,
)
from stages.errors import ArtifactError

X, Y = Tensor("x:0", "float32", (None, 4)), Tensor("y:0", "float32", None)
FINGERPRINT = Fingerprint("tensorrt_rtx", "1.7.1", "fp16", "d" * 64, ("8.6",))
PASSED = Verification(({"x": [1, 4]},), (OutputError("y", 1e-6, 3e-6),), 2, {}, True, 2e-3)


def left(count: int, op: str = "Erfc", reason: Reason = Reason.UNTRANSLATED) -> tuple[LeftOp, ...]:
    return tuple(LeftOp(f"dense_{i}/{op}", op, f"dense_{i}", reason, "no handler") for i in range(count))


@pytest.fixture
def report() -> Report:
    engine = EngineReport("tensorrt_rtx", "fp16", FINGERPRINT, 2_500_000, 1.5, "executed")
    region = RegionReport("region_0", ("a", "b", "c"), (X,), (Y,), (engine,), 1e-6, 2e-6)
    times = (StageTime("freeze", 0.5), StageTime("split", 2.0))
    return Report("model.pb", "tensorrt_rtx", "fp16", 5, 3, (region,), left(2), PASSED, times)


def test_the_summary_states_share_engines_reasons_and_verdict(report: Report) -> None:
    assert report.summary().splitlines() == [
        "3 of 5 ops (60.0%) in 1 engine",
        "  region_0: 3 ops: tensorrt_rtx fp16 2.5 MB (executed)",
        "  left in TensorFlow: 2 × Erfc in dense_0 … dense_1: unsupported by tf2onnx: no handler",
        "verified against TensorFlow: largest relative error 3.0e-06 (allowed 2e-03), 2 engine calls, 0 fallbacks",
    ]


def test_the_summary_says_what_was_not_done(report: Report) -> None:
    unverified = replace(report, verification=Verification((), (), 0, {}, None))
    assert unverified.summary().endswith("not verified")
    nothing = replace(report, ops_total=0, ops_in_engines=0, regions=())
    assert nothing.summary().startswith("0 of 0 ops (0.0%) in 0 engines")


def test_the_summary_says_why_a_precision_fell_back(report: Report) -> None:
    (region,) = report.regions
    engine = replace(region.engines[0], precision="fp32", note="fp16: no kernel")
    changed = replace(report, regions=(replace(region, engines=(engine,)),))
    assert "fp32 2.5 MB (executed; fp16: no kernel)" in changed.summary()


def test_a_report_reads_back_equal(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report


def test_an_infinite_error_is_valid_json(report: Report, tmp_path: Path) -> None:
    check = replace(PASSED, outputs=(OutputError("y", float("inf"), float("inf"), "shape"),), passed=False)
    path = tmp_path / "report.json"
    replace(report, verification=check).write(path)

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["verification"]["outputs"][0]["max_rel_error"] is None
    assert Report.read(path).verification == check


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": "1"}'])
def test_a_damaged_report_is_a_stated_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ArtifactError, match="is damaged"):
        Report.read(tmp_path / "report.json")


def test_a_missing_or_newer_report_is_a_stated_error(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with pytest.raises(ArtifactError, match="no such file"):
        Report.read(path)
    replace(report, schema_version=2).write(path)
    with pytest.raises(ArtifactError, match="schema version 2"):
        Report.read(path)


def test_the_ops_of_a_region_that_did_not_build_are_left_with_the_back_ends_words(tmp_path: Path) -> None:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        for name in ("built", "failed"):
            x = tf.nn.relu(x, name=name)
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    frozen = FrozenGraph(tmp_path, Source("graph_def", "m.pb", "serve_it"), (X,), (Y,), ("x",), ("y",))
    regions = tuple(
        Region(f"region_{i}", (op,), (X,), (Y,), tmp_path / "model.onnx", "d")
        for i, op in enumerate(("built", "failed"))
    )
    partition = Partition(tmp_path, frozen, "tensorrt_rtx", regions, left(1), 3)
    engine = Engine("region_0", tmp_path / "a.plan", "s", 10, 0.1, FINGERPRINT)
    engines = EngineSet(tmp_path, partition, (engine,), (FailedRegion("region_1", "no runner"),))
    made = make_report("m.pb", engines, "fp16", PASSED, {"freeze": 0.5})
    assert (made.ops_in_engines, made.ops_total, made.signature) == (1, 3, "serve_it")
    assert [region.name for region in made.regions] == ["region_0"]
    assert made.left_in_tensorflow[1:] == (LeftOp("failed", "Relu", "failed", Reason.BUILD_FAILED, "no runner"),)
    assert made.stages == (StageTime("freeze", 0.5),)
