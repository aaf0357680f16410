"""Where no engine can run the native segment does; each reason is counted, and logged once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from stages import engine_op
from stages.engine_op.interface import Interface, Port
from tests.engine_op_models import (
    affine_call,
    affine_interface,
    affine_model,
    affine_segment,
    onnx_model,
    plan_of,
    run_python,
)

X = np.ones((2, 3), np.float32)
ENGINE, NATIVE = 5.0, 1.0


@pytest.fixture(autouse=True)
def fresh_counters() -> None:
    engine_op.reset_stats()


def call(interface: Interface, plans: list[str | bytes], x: np.ndarray = X) -> np.ndarray:
    outputs = engine_op.engine_call(
        [tf.constant(x)], [], plans, native_segment=affine_segment(NATIVE), interface=interface, name="engine_node"
    )
    return np.asarray(outputs[0])


def plan_bytes(offset: float) -> bytes:
    """A plan of its own for each test: engines of the same bytes are shared."""
    return affine_model(offset).SerializeToString()


def missing(folder: Path) -> tuple[Interface, list[str | bytes]]:
    return affine_interface([plan_of(plan_bytes(11))], "missing"), [str(folder / "absent.onnx")]


def damaged_file(folder: Path) -> tuple[Interface, list[str | bytes]]:
    data = plan_bytes(12)
    (folder / "plan.onnx").write_bytes(data[:-1] + b"?")
    return affine_interface([plan_of(data)], "damaged_file"), [str(folder / "plan.onnx")]


def damaged_bytes(folder: Path) -> tuple[Interface, list[str | bytes]]:
    data = plan_bytes(13)
    return affine_interface([plan_of(data)], "damaged_bytes", storage="embedded"), [data + b"?"]


def refused(folder: Path) -> tuple[Interface, list[str | bytes]]:
    return affine_interface([plan_of(b"no model")], "refused", storage="embedded"), [b"no model"]


def for_gpu(folder: Path) -> tuple[Interface, list[str | bytes]]:
    plan = plan_of(b"engine", device="gpu", backend="tensorrt_rtx")
    return affine_interface([plan], "for_gpu", storage="embedded"), [b"engine"]


def unknown_backend(folder: Path) -> tuple[Interface, list[str | bytes]]:
    plan = plan_of(b"engine", backend="abacus")
    return affine_interface([plan], "unknown_backend", storage="embedded"), [b"engine"]


def none(folder: Path) -> tuple[Interface, list[str | bytes]]:
    return affine_interface([], "none"), []


def other_outputs(folder: Path) -> tuple[Interface, list[str | bytes]]:
    data = plan_bytes(14)
    interface = affine_interface([plan_of(data)], "other_outputs", storage="embedded")
    ports = (replace(interface.outputs[0], binding="elsewhere"), interface.outputs[1])
    return replace(interface, outputs=ports), [data]


def other_input_dtype(folder: Path) -> tuple[Interface, list[str | bytes]]:
    data = plan_bytes(15)
    interface = affine_interface([plan_of(data)], "other_input_dtype", storage="embedded")
    return replace(interface, inputs=(Port("input_0", "float16", (None, 3)),)), [data]


def narrow_profile(folder: Path) -> tuple[Interface, list[str | bytes]]:
    data = plan_bytes(16)
    profiles = ((("input_0", (4, 3), (5, 3), (8, 3)),),)
    return affine_interface([plan_of(data, profiles=profiles)], "narrow_profile", storage="embedded"), [data]


def newer_interface(folder: Path) -> tuple[Interface, list[str | bytes]]:
    data = plan_bytes(17)
    interface = affine_interface([plan_of(data)], "newer_interface", storage="embedded")
    return replace(interface, format_version=99), [data]


def fails_while_running(folder: Path) -> tuple[Interface, list[str | bytes]]:
    data = onnx_model(
        [("Reshape", ["input_0", "shape"], ["output_0"]), ("Greater", ["output_0", "zero"], ["output_1"])],
        {"input_0": ("FLOAT", ["n", 3])},
        {"output_0": ("FLOAT", ["m", 7]), "output_1": ("BOOL", ["m", 7])},
        {"shape": np.array([-1, 7], np.int64), "zero": np.float32(0)},
    ).SerializeToString()
    return affine_interface([plan_of(data)], "fails_while_running", storage="embedded"), [data]


FAILURES = {
    missing: "plan missing",
    damaged_file: "plan damaged",
    damaged_bytes: "plan damaged",
    refused: "plan refused",
    for_gpu: "no usable GPU",
    unknown_backend: "backend not installed",
    none: "no plan",
    other_outputs: "interface mismatch",
    other_input_dtype: "interface mismatch",
    narrow_profile: "shape outside the profiles",
    newer_interface: "format version",
    fails_while_running: "engine failed",
}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
def test_failure_runs_natively_is_counted_and_logged_once(
    failure: Callable[[Path], tuple[Interface, list[str | bytes]]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    interface, plans = failure(tmp_path)
    for _ in range(3):
        np.testing.assert_array_equal(call(interface, plans), 2 * X + NATIVE)
    reason = FAILURES[failure]
    assert engine_op.stats() == {interface.region: {"engine_calls": 0, "fallbacks": {reason: 3}}}

    failing = replace(interface, on_failure="fail")
    with pytest.raises(tf.errors.FailedPreconditionError) as caught:
        call(failing, plans)
    words = caught.value.message
    assert f"{interface.region} can't run in an engine: {reason}" in words
    assert "EngineCall" in words


def test_fail_policy_names_the_node_in_a_graph(tmp_path: Path) -> None:
    interface, plans = damaged_bytes(tmp_path)
    model = tf.function(lambda: call_symbolic(replace(interface, on_failure="fail"), plans))
    with pytest.raises(tf.errors.FailedPreconditionError, match=r"node engine_node: damaged_bytes .*: plan damaged"):
        model()


def call_symbolic(interface: Interface, plans: list[str | bytes]) -> tf.Tensor:
    return engine_op.engine_call(
        [tf.constant(X)], [], plans, native_segment=affine_segment(NATIVE), interface=interface, name="engine_node"
    )[0]


def test_reason_is_logged_once_with_its_detail(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        import tensorflow as tf
        from tests.engine_op_models import affine_call
        folder = Path(sys.argv[1])
        (folder / "region_7.onnx").write_bytes(b"damaged")
        for size in (1, 2, 3, 4):
            affine_call(tf.ones((size, 3)), folder, "region_7")
    """
    log = run_python(program, str(tmp_path)).stderr
    assert log.count("region_7 (node") == 1
    assert f"can't run in an engine: plan damaged: {tmp_path}/region_7.onnx: SHA-256 is" in log


def test_plan_that_cannot_run_here_is_passed_over_for_one_that_can() -> None:
    data = plan_bytes(21)
    plans = [plan_of(b"engine", device="gpu", backend="tensorrt_rtx"), plan_of(b"no model"), plan_of(data)]
    interface = affine_interface(plans, "passed_over", storage="embedded")
    np.testing.assert_array_equal(call(interface, [b"engine", b"no model", data]), 2 * X + 21)
    assert engine_op.stats() == {"passed_over": {"engine_calls": 1, "fallbacks": {}}}


def test_call_takes_the_first_plan_whose_profiles_fit() -> None:
    small, large = plan_bytes(22), plan_bytes(23)
    plans = [
        plan_of(small, profiles=((("input_0", (1, 3), (1, 3), (2, 3)),), (("input_0", (4, 3), (4, 3), (4, 3)),))),
        plan_of(large, profiles=((("input_0", (5, 3), (6, 3), (8, 3)),),)),
    ]
    interface = affine_interface(plans, "profiles", storage="embedded")
    for size, offset in ((1, 22), (2, 22), (3, NATIVE), (4, 22), (5, 23), (8, 23), (9, NATIVE)):
        x = np.ones((size, 3), np.float32)
        np.testing.assert_array_equal(call(interface, [small, large], x), 2 * x + offset)
    assert engine_op.stats()["profiles"] == {"engine_calls": 5, "fallbacks": {"shape outside the profiles": 2}}


def test_newer_op_runs_natively() -> None:
    data = plan_bytes(24)
    interface = affine_interface([plan_of(data)], "newer_op", storage="embedded")
    with tf.Graph().as_default() as graph:
        outputs = engine_op.engine_call(
            [tf.constant(X)], [], [data], native_segment=affine_segment(NATIVE), interface=interface, name="call"
        )
        definition = graph.as_graph_def()
    (node,) = (node for node in definition.node if node.op == "EngineCall")
    node.attr["format_version"].i = 99
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        (y,) = tf.import_graph_def(definition, return_elements=[outputs[0].name], name="")
        np.testing.assert_array_equal(session.run(y), 2 * X + NATIVE)
    assert engine_op.stats()["newer_op"] == {"engine_calls": 0, "fallbacks": {"format version": 1}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "{", "interface is not JSON"),
        (lambda text: text.replace('"unusable"', '""'), "names no region"),
        (lambda text: text.replace('"native"', '"perhaps"'), "on_failure is 'perhaps'"),
    ],
)
def test_unreadable_interface_is_an_error(change: Callable[[str], str], words: str) -> None:
    interface = affine_interface([], "unusable")
    with tf.Graph().as_default() as graph:
        (y, _) = engine_op.engine_call(
            [tf.constant(X)], [], [], native_segment=affine_segment(NATIVE), interface=interface
        )
        definition = graph.as_graph_def()
    (node,) = (node for node in definition.node if node.op == "EngineCall")
    node.attr["interface"].s = change(interface.to_json()).encode()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        (y,) = tf.import_graph_def(definition, return_elements=[y.name], name="")
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            session.run(y)


def test_without_a_runtime_the_native_segment_runs(tmp_path: Path) -> None:
    program = """
        import ctypes, json, sys
        from pathlib import Path
        import tensorflow as tf
        from stages import engine_op
        from stages.engine_op.compile import compiled_library
        from tests.engine_op_models import affine_call
        library = ctypes.CDLL(str(compiled_library()))
        library.GraftUnregisterRuntime.argtypes = (ctypes.c_double,)
        assert library.GraftUnregisterRuntime(1.0) == 0
        print(json.dumps([affine_call(tf.ones((1, 3)), Path(sys.argv[1]), "alone", plan_offset=5.0)[0].numpy().tolist(),
                          engine_op.stats()]))
    """
    expected = '[[[3.0, 3.0, 3.0]], {"alone": {"engine_calls": 0, "fallbacks": {"no runtime": 1}}}]'
    assert run_python(program, str(tmp_path)).stdout.strip() == expected


def test_errors_of_the_native_segment_reach_the_caller() -> None:
    interface = affine_interface([], "broken")

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def segment(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.ensure_shape(x, (99, 3)), x > 0

    with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible with expected shape"):
        engine_op.engine_call(
            [tf.constant(X)], [], [], native_segment=segment.get_concrete_function(), interface=interface
        )


def test_damaged_plan_does_not_spoil_another_model_with_the_same_plan(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/same.onnx").write_bytes(b"damaged")
    kept = tf.function(lambda x: affine_call(x, tmp_path / "bad", "same", plan_offset=31.0)[0])
    np.testing.assert_array_equal(kept(tf.constant(X)), 2 * X + NATIVE)
    np.testing.assert_array_equal(affine_call(tf.constant(X), tmp_path, "same", plan_offset=31.0)[0], 2 * X + 31)
