"""Branches of TensorFlow 1 whose condition is fixed: what is left computes the same, and nothing dead is left."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import tf1
from stages.conditions import Conditions
from stages.freeze import freeze
from stages.switches import fold_switches
from tests.test_freeze import run_frozen

v1 = tf.compat.v1
NAMES = ("a", "b", "c")


def nested(seed: int) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Random branches in branches on three conditions and combinations of them, in the default graph.

    Returns:
        The output, and its inputs by name: `x` float32 (4,) and the conditions, bool ().
    """
    draw = random.Random(seed)
    inputs = {name: v1.placeholder(tf.bool, [], name) for name in NAMES} | {"x": v1.placeholder(tf.float32, [4], "x")}

    def condition() -> tf.Tensor:
        one, other = (inputs[name] for name in draw.sample(NAMES, 2))
        return draw.choice(
            [one, tf.logical_not(one), tf.logical_and(one, other), tf.logical_or(one, tf.identity(other))]
        )

    def grow(depth: int, value: tf.Tensor) -> tf.Tensor:
        value = value * float(draw.randint(2, 9)) + float(draw.randint(1, 9))
        if not depth:
            return value
        branch = v1.cond(condition(), lambda: grow(depth - 1, value), lambda: grow(depth - 1, -value))
        return grow(depth - 1, branch) if draw.random() < 0.4 else branch + value

    return tf.identity(grow(3, inputs["x"]), "y"), inputs


@pytest.mark.parametrize("seed", range(6))
def test_fixing_conditions_of_nested_branches_changes_no_answer(seed: int, tmp_path: Path) -> None:
    x = np.array([1, -2, 3, 0.5], np.float32)
    with tf1.legacy() as session:
        output, inputs = nested(seed)
        (tmp_path / "model.pb").write_bytes(session.graph.as_graph_def().SerializeToString())
        answers = {
            values: session.run(output, {inputs["x"]: x, **{inputs[n]: v for n, v in zip(NAMES, values, strict=True)}})
            for values in itertools.product([False, True], repeat=3)
        }
    draw = random.Random(seed)
    for number, values in enumerate(draw.sample(list(answers), 3)):
        given = dict(zip(NAMES, values, strict=True))
        fixed = {name: value for name, value in given.items() if number == 0 or draw.random() < 0.6}
        frozen = freeze(tmp_path / "model.pb", tmp_path / str(number), outputs=["y"], constants=fixed)
        fed = {"x": x, **{name: np.array(value) for name, value in given.items() if name not in fixed}}
        got = run_frozen(frozen, {name: fed[name] for name in frozen.input_names})
        np.testing.assert_allclose(got["y"], answers[values], rtol=1e-5)
        if number == 0:
            assert not {"Switch", "Merge"} & {node.op for node in frozen.graph_def().node}


def test_who_asks_which_side_was_taken_is_told() -> None:
    with tf1.legacy() as session:
        x = tf.constant([1.0])
        sides = tf.raw_ops.Switch(data=x, pred=tf.constant(True))
        merged = tf.raw_ops.Merge(inputs=[sides.output_false * 2, sides.output_true * 3])
        index = tf.identity(merged.value_index + 10, "index")
        graph_def = session.graph.as_graph_def()
    outputs = fold_switches(graph_def, ("index:0", sides.output_true.name))
    assert not {"Switch", "Merge"} & {node.op for node in graph_def.node}
    with tf.Graph().as_default(), v1.Session() as session:
        found = tf.graph_util.import_graph_def(graph_def, return_elements=list(outputs), name="")
        assert [value.tolist() for value in session.run(found)] == [11, [1.0]]
    assert index.op.name == "index"


def test_a_loop_whose_entry_is_dead_goes_and_one_that_is_alive_stays() -> None:
    with tf1.legacy() as session:
        x = v1.placeholder(tf.float32, [], "x")

        def loop() -> tf.Tensor:
            return v1.while_loop(lambda i: i < 5.0, lambda i: i + 1.0, [x])

        tf.identity(v1.cond(tf.constant(True), lambda: x * 2, loop), "y")
        tf.identity(v1.cond(tf.constant(False), lambda: x * 2, loop), "z")
        graph_def = session.graph.as_graph_def()
    fold_switches(graph_def, ("y:0", "z:0"))
    assert [node.op for node in graph_def.node].count("LoopCond") == 1
    with tf.Graph().as_default(), v1.Session() as session:
        fed, y, z = tf.graph_util.import_graph_def(graph_def, return_elements=["x:0", "y:0", "z:0"], name="")
        assert session.run([y, z], {fed: 2.5}) == [5.0, 5.5]


def test_conditions_that_depend_on_inputs_or_on_themselves_are_unknown() -> None:
    with tf1.legacy() as session:
        fed = v1.placeholder(tf.bool, [], "fed")
        tf.logical_and(fed, tf.constant(False), "never")
        tf.logical_or(fed, tf.constant(False), "unknown")
        v1.while_loop(lambda go: go, tf.logical_not, [tf.constant(True)])
        graph_def = session.graph.as_graph_def()
    conditions = Conditions(graph_def)
    assert conditions.value("fed") is None
    assert conditions.value("never:0") is False
    assert conditions.value("unknown") is None
    merge = next(node.name for node in graph_def.node if node.op == "Merge")
    assert conditions.value(merge) is None
