"""The back ends: what they say about models, what they build, and which of them are chosen."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from stages import backends
from stages.artifacts import ShapeRange
from stages.backends import nvinfer
from stages.backends.base import LIBRARIES, Backend, BuildOptions, fixed_sizes
from stages.backends.hardware import gpu_count
from stages.errors import BackendError
from tests import onnx_models as tiny


@pytest.fixture(scope="module")
def rtx() -> Backend:
    pytest.importorskip("tensorrt_rtx")
    return backends.get("tensorrt_rtx")


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_a_supported_model_is_accepted_with_its_bindings(rtx: Backend, tmp_path: Path) -> None:
    support = rtx.check(tiny.save(tiny.conv(), tmp_path / "m.onnx"))
    assert support.accepted
    assert support.bindings == (("input_0", "float32"), ("output_0", "float32"))
    assert not support.shape_inputs


def test_a_refusal_names_the_node_its_op_and_the_cause(rtx: Backend, tmp_path: Path) -> None:
    support = rtx.check(tiny.save(tiny.unknown_op(), tmp_path / "m.onnx"))
    assert not support.accepted
    assert [(refusal.node, refusal.op_type) for refusal in support.refusals] == [("mine", "MyOp")]
    assert "not found" in support.refusals[0].message or "not supported" in support.refusals[0].message


def test_an_input_whose_values_decide_a_shape_is_reported_and_not_built(rtx: Backend, tmp_path: Path) -> None:
    model = tiny.save(tiny.shape_input(), tmp_path / "m.onnx")
    assert rtx.check(model).shape_inputs == ("input_1",)
    outcome = rtx.build(model, tmp_path / "plan", BuildOptions())
    assert not outcome.built
    assert "input_1 is a shape tensor" in outcome.failure


def test_a_file_that_is_no_model_is_a_failure_not_an_exception(rtx: Backend, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a model")
    assert rtx.check(path).failure
    assert rtx.build(path, tmp_path / "plan", BuildOptions()).failure


def test_weights_in_external_data_are_found(rtx: Backend, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(tiny.conv(), model, save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").stat().st_size == 8 * 3 * 3 * 3 * 4
    assert rtx.check(model).accepted
    outcome = rtx.build(model, tmp_path / "plan", BuildOptions(profiles=(tiny.conv_profile(1, 2, 4),)))
    assert outcome.built, outcome.failure


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(profiles=(tiny.conv_profile(1, 4, 8),)),
        BuildOptions(profiles=(tiny.conv_profile(1, 4, 8), tiny.conv_profile(9, 16, 32))),
        BuildOptions(profiles=(tiny.conv_profile(0, 1, 8),)),
        BuildOptions("tf32", (tiny.conv_profile(1, 1, 1),)),
        BuildOptions(profiles=(tiny.conv_profile(1, 1, 1),), workspace_mib=64),
        BuildOptions(profiles=(tiny.conv_profile(1, 1, 1),), capabilities=("8.6", "12.0")),
    ],
    ids=["three sizes", "two profiles", "an empty batch", "tf32", "workspace", "capabilities"],
)
def test_what_the_options_ask_for_is_built(rtx: Backend, tmp_path: Path, options: BuildOptions) -> None:
    model = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    outcome = rtx.build(model, tmp_path / "plan", options)
    assert outcome.built, outcome.failure
    assert outcome.seconds > 0
    assert files(tmp_path) == {"m.onnx", "plan"}
    assert (tmp_path / "plan").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions(), "no optimization profile"),
        (BuildOptions(profiles=((ShapeRange("x", (1,), (1,), (1,)),),)), "names x, which is no input"),
        (BuildOptions(profiles=(tiny.conv_profile(3, 2, 1),)), "MIN<=OPT<=MAX"),
        (BuildOptions(profiles=((ShapeRange("input_0", (1, 3), (1, 3), (1, 3)),),)), "input_0"),
        (BuildOptions(profiles=((ShapeRange("input_0", *([(1, 4, 16, 16)] * 3)),),)), "input_0"),
        (BuildOptions(profiles=(tiny.conv_profile(1, 1, 1),), capabilities=("9.9",)), "compute capability 9.9"),
    ],
    ids=["no profile", "unknown input", "wrong order", "wrong rank", "wrong size", "unknown capability"],
)
def test_a_failed_build_says_why_and_leaves_no_file(
    rtx: Backend, tmp_path: Path, options: BuildOptions, words: str
) -> None:
    outcome = rtx.build(tiny.save(tiny.conv(), tmp_path / "m.onnx"), tmp_path / "plan", options)
    assert not outcome.built
    assert words in outcome.failure
    assert "cudaError 35" not in outcome.failure
    assert files(tmp_path) == {"m.onnx"}


def test_a_result_whose_size_depends_on_values_is_refused(rtx: Backend, tmp_path: Path) -> None:
    (refusal,) = rtx.check(tiny.save(tiny.unbuildable(), tmp_path / "m.onnx")).refusals
    assert (refusal.node, refusal.op_type) == ("nms", "NonMaxSuppression")
    assert "depends on values" in refusal.message


def test_a_model_that_does_not_build_leaves_no_plan(rtx: Backend, tmp_path: Path) -> None:
    model = tiny.save(tiny.unbuildable(), tmp_path / "m.onnx")
    outcome = rtx.build(model, tmp_path / "plan", BuildOptions())
    assert not outcome.built
    assert "nms" in outcome.failure
    assert files(tmp_path) == {"m.onnx"}


@pytest.mark.parametrize(("precision", "set_"), [("fp32", False), ("fp16", False), ("tf32", True)])
def test_tf32_is_off_unless_it_is_the_precision(rtx: Backend, precision: str, set_: bool) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    session = nvinfer._open(trt)
    assert session.builder.create_builder_config().get_flag(trt.BuilderFlag.TF32), "no longer on by default"
    config = nvinfer._configure(trt, session, BuildOptions(precision))
    assert config.get_flag(trt.BuilderFlag.TF32) is set_


def test_onnx_runtime_keeps_the_model_as_its_plan(tmp_path: Path) -> None:
    model = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    ort = backends.get("onnxruntime")
    assert ort.check(model).accepted
    assert ort.build(model, tmp_path / "plan.onnx", BuildOptions()).built
    assert (tmp_path / "plan.onnx").read_bytes() == model.read_bytes()


def test_onnx_runtime_plans_have_external_data_beside_them(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(tiny.conv(batch=1), model, save_as_external_data=True, location="m.data", size_threshold=0)
    plan = tmp_path / "elsewhere" / "plan.onnx"
    plan.parent.mkdir()
    assert backends.get("onnxruntime").build(model, plan, BuildOptions()).built
    assert backends.get("onnxruntime").check(plan).accepted
    assert files(plan.parent) == {"plan.onnx", "m.data"}


def test_onnx_runtime_says_what_it_refuses(tmp_path: Path) -> None:
    model = tiny.save(tiny.unknown_op(), tmp_path / "m.onnx")
    ort = backends.get("onnxruntime")
    assert "MyOp" in ort.check(model).failure
    outcome = ort.build(model, tmp_path / "plan.onnx", BuildOptions())
    assert not outcome.built
    assert "MyOp" in outcome.failure
    assert files(tmp_path) == {"m.onnx"}


def test_auto_adds_onnx_runtime_only_without_a_gpu() -> None:
    if not {"tensorrt", "tensorrt_rtx"} & set(backends.available()):
        pytest.skip("no TensorRT here")
    chosen = backends.choose("auto")
    assert chosen[0] in ("tensorrt", "tensorrt_rtx")
    assert ("onnxruntime" in chosen) is (gpu_count() == 0)


def test_several_back_ends_can_be_named() -> None:
    assert backends.choose("onnxruntime, onnxruntime") == ("onnxruntime",)


def test_an_unknown_back_end_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(BackendError, match="tensorrt_rtx"):
        backends.choose("openvino")


def test_a_missing_back_end_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(LIBRARIES["tensorrt"], modules=("graftrt_absent_module",))
    monkeypatch.setitem(LIBRARIES, "tensorrt", absent)
    backends.why_missing.cache_clear()
    try:
        with pytest.raises(BackendError, match=r"not installed[\s\S]*graftrt\[tensorrt\]"):
            backends.choose("tensorrt")
        assert "tensorrt" not in backends.available()
        with pytest.raises(BackendError, match="not installed"):
            backends.get("tensorrt").version()
    finally:
        backends.why_missing.cache_clear()


def test_a_version_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIBRARIES, "onnxruntime", replace(LIBRARIES["onnxruntime"], oldest=(999, 0)))
    with pytest.raises(BackendError, match=r"older than 999\.0"):
        backends.get("onnxruntime").version()


def test_fixed_sizes_are_profiles_of_their_own_before_the_ranges(rtx: Backend, tmp_path: Path) -> None:
    ranges = (tiny.conv_profile(1, 4, 8), tiny.conv_profile(9, 9, 32), tiny.conv_profile(8, 8, 8))
    sizes = [profile[0].optimum[0] for profile in fixed_sizes(ranges)]
    assert sizes == [1, 4, 9, 32]
    assert all(entry.minimum == entry.optimum == entry.maximum for profile in fixed_sizes(ranges) for entry in profile)
    empty = (ShapeRange("input_0", (0, 3), (1, 3), (4, 3)),)
    assert [profile[0].optimum[0] for profile in fixed_sizes((empty,))] == [1, 4]
    model = tiny.save(tiny.conv(), tmp_path / "m.onnx")
    for fixed in (False, True):
        outcome = rtx.build(model, tmp_path / f"plan{fixed}", BuildOptions(profiles=ranges, fixed_sizes=fixed))
        assert outcome.built, outcome.failure
    assert (tmp_path / "planTrue").stat().st_size > (tmp_path / "planFalse").stat().st_size
