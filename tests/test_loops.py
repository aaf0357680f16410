"""What tf2onnx is told about loops: how often they run at most, if that is certain."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tensorflow as tf

from stages.translate.loops import limit_trips

Loop = Callable[[tf.Tensor], tuple[tf.Tensor, ...]]


def limit(loop: Loop) -> tf.compat.v1.NodeDef | None:
    """The node that is the limit of the only loop of a graph, once limits are set; None for the -1 of before."""
    function = tf.function(loop, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int32, "n"))
    graph_def = function.graph.as_graph_def()
    limit_trips(graph_def)
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name="")
    nodes = {node.name: node for node in graph_def.node}
    (found,) = [node for node in nodes.values() if node.op in ("While", "StatelessWhile")]
    source = nodes[found.input[1].split(":")[0]]
    return source if source.name.endswith("graftrt_trip_limit") else None


def doubled(i: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return i + 1, x * 2.0


def test_a_constant_bound_is_the_limit() -> None:
    found = limit(lambda n: tf.while_loop(lambda i, x: i < 7, doubled, (0, tf.cast(n, tf.float32))))
    assert found is not None
    assert tf.make_ndarray(found.attr["value"].tensor) == 7


def test_a_bound_that_the_loop_is_given_is_the_limit() -> None:
    found = limit(lambda n: tf.while_loop(lambda i, x: tf.logical_and(x < 9.0, i < n), doubled, (0, 1.0)))
    assert found is not None
    assert (found.op, list(found.input)) == ("Identity", ["n"])


UNCERTAIN: dict[str, Loop] = {
    "counts from one": lambda n: tf.while_loop(lambda i, x: i < n, doubled, (1, 1.0)),
    "counts in twos": lambda n: tf.while_loop(lambda i, x: i < n, lambda i, x: (i + 2, x), (0, 1.0)),
    "counts down": lambda n: tf.while_loop(lambda i, x: i < n, lambda i, x: (i - 1, x), (0, 1.0)),
    "changes its bound": lambda n: tf.while_loop(lambda i, m: i < m, lambda i, m: (i + 1, m - 1), (0, n)),
    "goes on for another reason": lambda n: tf.while_loop(
        lambda i, x: tf.logical_or(i < n, x < 9.0), doubled, (0, 1.0)
    ),
    "does not count": lambda n: tf.while_loop(lambda x, y: x < 9.0, lambda x, y: (x * 2.0, y), (1.0, n)),
    "has a limit already": lambda n: tf.while_loop(lambda i, x: i < n, doubled, (0, 1.0), maximum_iterations=3),
}


@pytest.mark.parametrize("loop", UNCERTAIN.values(), ids=UNCERTAIN)
def test_no_limit_is_set_where_the_loop(loop: Loop) -> None:
    assert limit(loop) is None
