"""An EngineCall all of whose inputs are constant is run when it is asked for, never by constant folding at load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from stages import engine_op
from stages.engine_op.interface import Interface, Port
from tests.engine_op_models import affine_call, onnx_model, plan_of

ENGINE = 5.0


@pytest.fixture(autouse=True)
def fresh_counters() -> None:
    engine_op.reset_stats()


def constant_part(folder: Path) -> tf.Tensor:
    """3 x 3 of 2·3 + 5 + 1 = 12, from constants alone: the shape of a tensor whose shape is static."""
    size = tf.cast(tf.shape(tf.zeros((3, 3))), tf.float32)
    return affine_call(tf.fill((3, 3), size[0]), folder, "constant", plan_offset=ENGINE)[0] + 1.0


@pytest.mark.parametrize("grappler", [True, False])
def test_session_does_not_fold_it(tmp_path: Path, grappler: bool) -> None:
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = not grappler
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        x = tf.compat.v1.placeholder(tf.float32, (None, 3))
        y = x + constant_part(tmp_path)
        run = session.make_callable(y, [x])  # optimises the graph
        assert engine_op.stats() == {}
        for calls in (1, 2):
            np.testing.assert_array_equal(run(np.ones((3, 3))), np.full((3, 3), 13))
            assert engine_op.stats() == {"constant": {"engine_calls": calls, "fallbacks": {}}}


@pytest.mark.parametrize("grappler", [True, False])
def test_saved_model_does_not_fold_it(tmp_path: Path, grappler: bool) -> None:
    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return x + constant_part(tmp_path)

    tf.saved_model.save(Model(), str(tmp_path / "model"))
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not grappler})
    try:
        model = tf.saved_model.load(str(tmp_path / "model"))
        assert engine_op.stats() == {}
        for calls in (1, 2):
            np.testing.assert_array_equal(model(tf.ones((3, 3))), np.full((3, 3), 13))
            assert engine_op.stats() == {"constant": {"engine_calls": calls, "fallbacks": {}}}
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


def test_shape_inference_does_not_evaluate_it() -> None:
    data = onnx_model([("Identity", ["x"], ["y"])], {"x": ("INT32", [2])}, {"y": ("INT32", [2])}).SerializeToString()
    port = (2,)
    interface = Interface(
        "sizes", (Port("x", "int32", port),), (Port("y", "int32", port),), (plan_of(data),), "embedded"
    )
    segment = tf.function(lambda x: (x + 0,)).get_concrete_function(tf.TensorSpec((2,), tf.int32))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32)
        (sizes,) = engine_op.engine_call([tf.constant([2, 3])], [], [data], native_segment=segment, interface=interface)
        y = tf.reshape(x, sizes)
        assert engine_op.stats() == {}
        assert session.run(y, {x: np.arange(6)}).shape == (2, 3)
    assert engine_op.stats() == {"sizes": {"engine_calls": 1, "fallbacks": {}}}
