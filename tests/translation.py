"""Translate a TensorFlow function, run both, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import tensorflow as tf

from stages.translate import Translation, translate

Graph = tuple[tf.compat.v1.GraphDef, list[str], list[str]]


def frozen(function: Callable[..., object], *specs: tf.TensorSpec) -> Graph:
    """GraphDef without variables, names of its inputs and outputs."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    concrete = tf.function(function).get_concrete_function(*specs)
    constant = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    graph_def = constant.graph.as_graph_def(add_shapes=True)
    return graph_def, [t.name for t in constant.inputs], [t.name for t in constant.outputs]


def run_tensorflow(graph: Graph, outputs: Sequence[str], values: Sequence[np.ndarray]) -> list[np.ndarray]:
    config = tf.compat.v1.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        tf.import_graph_def(graph[0], name="")
        return session.run(list(outputs), dict(zip(graph[1], values, strict=True)))


def run_onnx(translation: Translation, values: Sequence[np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(translation.model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {name.name: values[int(name.name.removeprefix("input_"))] for name in session.get_inputs()}
    return session.run([f"output_{index}" for index in range(len(translation.model.graph.output))], feeds)


def assert_same(graph: Graph, outputs: Sequence[str], *values: np.ndarray, tolerance: float = 1e-5) -> Translation:
    """Translate, run both, compare values, dtypes and shapes."""
    translation = translate(graph[0], graph[1], outputs)
    assert translation.unsupported == ()
    onnx.checker.check_model(translation.model)
    expected = run_tensorflow(graph, outputs, values)
    for wanted, got in zip(expected, run_onnx(translation, values), strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    return translation


def check(function: Callable[..., object], *values: np.ndarray, tolerance: float = 1e-5) -> Translation:
    """`assert_same` of all results of a function, traced with open first axes, so that nothing folds."""
    specs = [tf.TensorSpec([None, *value.shape[1:]] if value.ndim else [], value.dtype) for value in values]
    graph = frozen(function, *specs)
    return assert_same(graph, graph[2], *values, tolerance=tolerance)


def signal(*shape: int, seed: int = 0) -> np.ndarray:
    """float32, normally distributed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
