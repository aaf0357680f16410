"""EngineCall: the same answers as TensorFlow in every mode, and every failure counted and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from stages import engine_op
from stages.engine_op import runtime
from tests.engine_op_models import (
    WIDTH,
    affine_call,
    affine_interface,
    affine_model,
    affine_segment,
    onnx_model,
    plan_of,
    run_python,
)

ENGINE, NATIVE = 5.0, 1.0
"""Offsets that tell whether the engine or the native segment computed a result."""


@pytest.fixture(autouse=True)
def fresh_counters() -> None:
    engine_op.reset_stats()


def batch(size: int) -> np.ndarray:
    return np.linspace(-1, 1, size * WIDTH, dtype=np.float32).reshape(size, WIDTH)


def assert_affine(outputs: list[object], x: np.ndarray, offset: float) -> None:
    np.testing.assert_allclose(np.asarray(outputs[0]), 2 * x + offset, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(outputs[1]), x > 0)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_eager_call_runs_the_engine(tmp_path: Path, size: int) -> None:
    outputs = affine_call(tf.constant(batch(size)), tmp_path, "eager", plan_offset=ENGINE)
    assert_affine(outputs, batch(size), ENGINE)
    assert engine_op.stats() == {"eager": {"engine_calls": 1, "fallbacks": {}}}


def test_function_with_unknown_batch_keeps_the_declared_shape(tmp_path: Path) -> None:
    @tf.function(input_signature=[tf.TensorSpec((None, WIDTH), tf.float32)])
    def model(x: tf.Tensor) -> list[tf.Tensor]:
        outputs = affine_call(x, tmp_path, "function", plan_offset=ENGINE)
        assert outputs[0].shape.as_list() == [None, WIDTH]
        return outputs

    for size in (1, 5, 5, 2, 5):  # a repeated shape is written in place, a first one copied
        assert_affine(model(batch(size)), batch(size), ENGINE)
    assert engine_op.stats()["function"] == {"engine_calls": 5, "fallbacks": {}}


def test_session_runs_the_engine(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, (None, WIDTH))
        outputs = affine_call(x, tmp_path, "session", plan_offset=ENGINE)
        assert_affine(session.run(outputs, {x: batch(4)}), batch(4), ENGINE)
    assert engine_op.stats()["session"]["engine_calls"] == 1


def test_loop_and_branch_bodies_run_the_engine(tmp_path: Path) -> None:
    @tf.function
    def model(x: tf.Tensor) -> tf.Tensor:
        for _ in tf.range(3):
            tf.autograph.experimental.set_loop_options(shape_invariants=[(x, tf.TensorShape((None, WIDTH)))])
            x = affine_call(x, tmp_path, "loop", plan_offset=ENGINE)[0]
        if tf.reduce_sum(x) > 0:
            x = affine_call(x, tmp_path, "branch", plan_offset=ENGINE)[0]
        return x

    expected = batch(2)
    for _ in range(4):
        expected = 2 * expected + ENGINE
    np.testing.assert_allclose(model(tf.constant(batch(2))), expected, rtol=1e-6)
    calls = {region: found["engine_calls"] for region, found in engine_op.stats().items()}
    assert calls == {"loop": 3, "branch": 1}


def test_saved_model_runs_moved_in_another_process(tmp_path: Path) -> None:
    class Model(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            plan = tmp_path / "region.onnx"
            plan.write_bytes(affine_model(ENGINE).SerializeToString())
            self.plan = tf.saved_model.Asset(str(plan))
            self.interface = affine_interface([plan_of(plan.read_bytes())], "saved")
            self.offset = tf.Variable(NATIVE)

        @tf.function(input_signature=[tf.TensorSpec((None, WIDTH), tf.float32)])
        def __call__(self, x: tf.Tensor) -> list[tf.Tensor]:
            segment = affine_segment(self.offset)
            return engine_op.engine_call(
                [x], [], [self.plan.asset_path], native_segment=segment, interface=self.interface
            )

    tf.saved_model.save(Model(), str(tmp_path / "first"))
    shutil.move(tmp_path / "first", tmp_path / "second")
    (tmp_path / "region.onnx").unlink()
    program = """
        import json, sys
        import stages.engine_op as engine_op
        import tensorflow as tf
        model = tf.saved_model.load(sys.argv[1])
        y = model(tf.ones((2, 3)))[0].numpy()
        with engine_op.native_only():
            z = model(tf.ones((2, 3)))[0].numpy()
        print(json.dumps([y.tolist(), z.tolist(), engine_op.stats()]))
    """
    y, z, stats = json.loads(run_python(program, str(tmp_path / "second")).stdout)
    assert y == [[2 + ENGINE] * 3] * 2
    assert z == [[2 + NATIVE] * 3] * 2
    assert stats == {"saved": {"engine_calls": 1, "fallbacks": {"native only": 1}}}


def test_captured_variable_is_read_by_the_native_segment_alone(tmp_path: Path) -> None:
    offset = tf.Variable(NATIVE)

    @tf.function
    def model(x: tf.Tensor) -> list[tf.Tensor]:
        return affine_call(x, tmp_path, "captured", plan_offset=ENGINE, native_offset=offset)

    x = tf.constant(batch(2))
    assert_affine(model(x), batch(2), ENGINE)
    offset.assign(9.0)
    assert_affine(model(x), batch(2), ENGINE)
    with engine_op.native_only():
        assert_affine(model(x), batch(2), 9.0)


def test_fail_policy_does_not_forbid_native_only(tmp_path: Path) -> None:
    with engine_op.native_only():
        outputs = affine_call(tf.constant(batch(2)), tmp_path, "asked", plan_offset=ENGINE, on_failure="fail")
    assert_affine(outputs, batch(2), NATIVE)
    assert_affine(affine_call(tf.constant(batch(2)), tmp_path, "asked", plan_offset=ENGINE), batch(2), ENGINE)


DTYPES = {
    tf.float32: "FLOAT",
    tf.float64: "DOUBLE",
    tf.float16: "FLOAT16",
    tf.bfloat16: "BFLOAT16",
    tf.int8: "INT8",
    tf.int16: "INT16",
    tf.int32: "INT32",
    tf.int64: "INT64",
    tf.uint8: "UINT8",
    tf.uint16: "UINT16",
    tf.uint32: "UINT32",
    tf.uint64: "UINT64",
    tf.bool: "BOOL",
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_every_dtype_and_a_scalar_cross_the_boundary(tmp_path: Path, dtype: tf.DType) -> None:
    from stages.engine_op.interface import Interface, Port

    onnx = DTYPES[dtype]
    data = onnx_model(
        [("Reshape", ["x", "shape"], ["y"]), ("Identity", ["s"], ["t"])],
        {"x": (onnx, ["a", "b"]), "s": (onnx, [])},
        {"y": (onnx, ["c"]), "t": (onnx, [])},
        {"shape": np.array([-1], np.int64)},
    ).SerializeToString()
    inputs = (Port("x", dtype.name, (None, None)), Port("s", dtype.name, ()))
    outputs = (Port("t", dtype.name, ()), Port("y", dtype.name, (None,)))
    interface = Interface(f"flat_{dtype.name}", inputs, outputs, (plan_of(data),), "embedded")
    segment = tf.function(lambda x, s: (s, tf.zeros_like(tf.reshape(x, [-1])))).get_concrete_function(
        tf.TensorSpec((None, None), dtype), tf.TensorSpec((), dtype)
    )
    x = tf.cast(tf.constant([[1, 0, 3], [4, 5, 0]]), dtype)
    for _ in range(2):
        t, y = engine_op.engine_call([x], [x[0, 0]], [data], native_segment=segment, interface=interface)
        assert t.numpy() == x[0, 0].numpy()
        np.testing.assert_array_equal(y.numpy(), x.numpy().ravel())
    assert engine_op.stats()[interface.region] == {"engine_calls": 2, "fallbacks": {}}


def test_output_whose_shape_depends_on_values_is_right_each_time() -> None:
    from stages.engine_op.interface import Interface, Port

    model = onnx_model([("NonZero", ["x"], ["y"])], {"x": ("FLOAT", ["n"])}, {"y": ("INT64", [1, "m"])})
    data = model.SerializeToString()
    interface = Interface(
        "values", (Port("x", "float32", (None,)),), (Port("y", "int64", (1, None)),), (plan_of(data),), "embedded"
    )
    segment = tf.function(lambda x: tf.zeros((1, 0), tf.int64)).get_concrete_function(tf.TensorSpec((None,)))
    for values in ([1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]):
        x = tf.constant(values, tf.float32)
        (y,) = engine_op.engine_call([x], [], [data], native_segment=segment, interface=interface)
        np.testing.assert_array_equal(y, [np.flatnonzero(values)])
    assert engine_op.stats()["values"] == {"engine_calls": 4, "fallbacks": {}}


def test_kernels_share_one_engine_and_drop_it_when_they_die(tmp_path: Path) -> None:
    data = affine_model(77.0).SerializeToString()
    key = (plan_of(data).sha256, "cpu")
    sessions = []
    for _ in range(3):
        with tf.Graph().as_default() as graph:
            x = tf.compat.v1.placeholder(tf.float32, (None, WIDTH))
            outputs = affine_call(x, tmp_path, "shared", plan_offset=77.0)
            sessions.append(tf.compat.v1.Session(graph=graph))
            assert_affine(sessions[-1].run(outputs, {x: batch(1)}), batch(1), 77.0)
    assert runtime.registry.users()[key] == 3
    for session in sessions:
        session.close()
    del session, sessions
    assert key not in runtime.registry.users()


@pytest.mark.parametrize("traced", [False, True])
def test_gradient_is_refused(tmp_path: Path, traced: bool) -> None:
    def gradient(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = affine_call(x, tmp_path, "gradient")[0]
        return tape.gradient(y, x)

    with pytest.raises(LookupError, match="EngineCall has no gradient, and gradient is one"):
        (tf.function(gradient, autograph=False) if traced else gradient)(tf.constant(batch(2)))


def test_jit_compilation_is_refused_by_name(tmp_path: Path) -> None:
    @tf.function(jit_compile=True)
    def model(x: tf.Tensor) -> tf.Tensor:
        return affine_call(x, tmp_path, "jit")[0]

    with pytest.raises(tf.errors.InvalidArgumentError, match=r"Detected unsupported operations.*EngineCall"):
        model(tf.constant(batch(2)))


def test_auto_clustering_leaves_the_engine_out(tmp_path: Path) -> None:
    @tf.function
    def model(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(affine_call(x * 2.0 + 1.0, tmp_path, "clustered", plan_offset=ENGINE)[0] * 3.0 + 1.0)

    tf.config.optimizer.set_jit("autoclustering")
    try:
        y = model(tf.constant(batch(2)))
    finally:
        tf.config.optimizer.set_jit(False)
    np.testing.assert_allclose(y, np.maximum((2 * (2 * batch(2) + 1) + ENGINE) * 3 + 1, 0), rtol=1e-5)
    assert engine_op.stats()["clustered"] == {"engine_calls": 1, "fallbacks": {}}
