"""`inspect`: what a model would become, and what lies in GraftRT's own folders and files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fixtures import cuts, vision
from pipeline import Config, convert
from pipeline.cli import main
from pipeline.inspection import inspect_model, inspect_path
from pipeline.report import Report
from stages import judge, reference
from stages.artifacts import Reason
from stages.errors import ArtifactError


@pytest.fixture
def no_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building, or running TensorFlow on samples, fails the test."""

    def forbidden(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a dry run builds and runs nothing")

    monkeypatch.setattr(judge, "compile_region", forbidden)
    monkeypatch.setattr(reference.Reference, "tensors", forbidden)


@pytest.mark.usefixtures("no_builds")
def test_a_dry_run_finds_the_regions_and_reasons_of_the_parser(tmp_path: Path) -> None:
    model = cuts.diamond().save(tmp_path / "model")
    found = inspect_model(str(model), Config(backend="onnxruntime"))
    assert 0 < found.ops_in_regions < found.ops_total
    assert found.ops_in_regions == sum(len(region.ops) for region in found.regions)
    assert found.ops_total == found.ops_in_regions + len(found.left_in_tensorflow)
    assert found.reasons
    assert all(sum(region.onnx_ops.values()) for region in found.regions)


@pytest.mark.usefixtures("no_builds")
def test_tensorrt_s_parser_is_asked(tmp_path: Path) -> None:
    model = vision.detector().save(tmp_path / "model")
    found = inspect_model(str(model), Config(backend="tensorrt_rtx"))
    assert found.backend == "tensorrt_rtx"
    assert found.regions


def test_open_axes_need_no_shapes(tmp_path: Path) -> None:
    import tensorflow as tf

    class Any(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, None, 4])])  # type: ignore[untyped-decorator]
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return tf.nn.relu(tf.exp(x) * 2.0 - 1.0)

    tf.saved_model.save(Any(), str(tmp_path / "model"))
    found = inspect_model(str(tmp_path / "model"), Config(backend="onnxruntime"))
    assert found.ops_in_regions == found.ops_total >= 4


def test_the_command_names_ops_reasons_and_remedies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(cuts.diamond().save(tmp_path / "model"))
    assert main(["inspect", model, "--backend", "onnxruntime", "--keep-in-tf", "BatchMatMulV2", "-v"]) == 0
    said = capsys.readouterr().out
    assert "would be in" in said
    assert "user's choice: try drop --keep-in-tf" in said
    assert main(["inspect", model, "--backend", "onnxruntime", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ops_total"] == found["ops_in_regions"] + len(found["left_in_tensorflow"])


def test_a_conversion_its_stages_a_region_and_a_plan_are_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    convert(
        str(cuts.diamond().save(tmp_path / "model")),
        out,
        Config(backend="tensorrt_rtx,onnxruntime", keep_stages=True, min_region=1, keep_in_tf=("BatchMatMulV2",)),
    )
    region = out / "regions" / "region_0"
    kinds = {
        out: "conversion",
        out / "stages" / "freeze": "FrozenGraph",
        out / "stages" / "split": "Partition",
        region: "region",
        region / "model.onnx": "ONNX model",
        region / "tensorrt_rtx.plan": "plan",
    }
    for path, kind in kinds.items():
        found = inspect_path(path)
        assert found is not None
        assert found["kind"] == kind, path
    (plan,) = inspect_path(region)["plans"]  # type: ignore[index, misc]
    assert plan["built"]["backend"] == "tensorrt_rtx"
    assert main(["inspect", str(region)]) == 0
    assert "kind: region" in capsys.readouterr().out
    left = Report.read(out / "report.json").left_in_tensorflow
    assert left
    assert main(["inspect", str(out), "-v"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {op.node} ({op.op}): {op.reason.value}: {op.detail}" in said for op in left)
    assert inspect_path(tmp_path / "model") is None


def test_a_file_that_is_no_onnx_model_is_an_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\xff\xff\xff nothing")
    with pytest.raises(ArtifactError, match="no ONNX model"):
        inspect_path(bad)


def test_reasons_of_the_dry_run_are_those_of_the_records(tmp_path: Path) -> None:
    model = str(cuts.diamond().save(tmp_path / "model"))
    found = inspect_model(model, Config(backend="onnxruntime", keep_in_tf=("BatchMatMulV2",)))
    kept = [entry for entry in found.left_in_tensorflow if entry.reason is Reason.USER]
    assert {entry.op for entry in kept} == {"BatchMatMulV2"}
