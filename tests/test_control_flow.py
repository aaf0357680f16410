"""Branches and loops that stay in TensorFlow have engines in their bodies, and answer as before."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from fixtures import branches, vision
from fixtures.example import Example, Weights, example
from pipeline import Config, convert
from pipeline.report import Verification, make_report
from stages import engine_op
from stages.artifacts import EngineSet, FailedRegion, Partition, Reason
from stages.bodies import find
from stages.errors import StitchError
from stages.export import export
from stages.freeze import freeze
from stages.grafts import PlanSource, Policy
from stages.graph import Graph
from stages.scopes import Scope
from stages.split import SplitOptions, split
from stages.stitching import stitch_graph
from tests.conftest import Converted, relative_error

FP32 = 1e-5
ENGINE = {"engine_calls": 1, "fallbacks": {}}


def split_by_rtx(built: Example, folder: Path, **options: object) -> Partition:
    exported = export(freeze(str(built.save(folder / "model")), folder / "1"), folder / "2", min_region=3)
    return split(exported, folder / "3", options=SplitOptions(min_region=3, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def conversions() -> Iterator[dict[str, Converted]]:
    """Each example converted once, for ONNX Runtime."""
    with tempfile.TemporaryDirectory() as name:
        done = {}
        for key, make in branches.EXAMPLES.items():
            model = make().save(Path(name) / key / "model")
            out = Path(name) / key / "out"
            done[key] = Converted(out, convert(str(model), out, Config(backend="onnxruntime", min_region=3)))
        yield done


@pytest.mark.parametrize(
    "name", ["mapped", *(pytest.param(n, marks=pytest.mark.slow) for n in ("branches", "nested", "growing"))]
)
def test_rtx_builds_engines_for_what_lies_in_bodies(name: str, tmp_path: Path) -> None:
    partition = split_by_rtx(branches.EXAMPLES[name](), tmp_path)
    assert len(partition.regions) == {"mapped": 2, "branches": 2, "nested": 2, "growing": 1}[name]
    assert all(region.scope for region in partition.regions)
    assert all(region.max_rel_error is not None and region.max_rel_error <= FP32 for region in partition.regions)
    control = [op for op in partition.left if op.op.removeprefix("Stateless") in ("While", "If", "Case")]
    assert control
    left = {op.node for op in partition.left}
    inside = [op for region in partition.regions for op in region.ops]
    assert len(left) == len(partition.left)
    assert len(left) + len(inside) == partition.ops_total


@pytest.mark.parametrize("name", branches.EXAMPLES)
def test_the_stitched_model_answers_like_tensorflow(name: str, conversions: dict[str, Converted]) -> None:
    built, result = branches.EXAMPLES[name](), conversions[name]
    for batch in (1, 4):
        x = branches.inputs(built, batch)
        expected = built.module.serve(**{key: tf.constant(value) for key, value in x.items()})
        answer = result.run(x)
        assert all(relative_error(expected[key].numpy(), answer[key]) <= FP32 for key in expected)


def test_an_engine_in_a_loop_is_called_once_an_iteration(conversions: dict[str, Converted]) -> None:
    built = branches.mapped()
    engine_op.reset_stats()
    conversions["mapped"].run(branches.inputs(built, 5))
    calls = {"engine_calls": 5, "fallbacks": {}}
    assert engine_op.stats() == {"region_0": calls, "region_1": calls}


def test_only_the_branch_that_is_taken_calls_its_engine(conversions: dict[str, Converted]) -> None:
    result = conversions["branches"]
    for image, name in ((np.ones, "then_branch"), (np.zeros, "else_branch")):
        engine_op.reset_stats()
        result.run({"images": image((2, 8, 8, 3), np.float32)})
        (taken,) = [r.name for r in result.report.regions if all(f"/{name}/" in op for op in r.ops)]
        assert engine_op.stats() == {taken: ENGINE}


@pytest.mark.parametrize("name", branches.EXAMPLES)
def test_native_segments_in_bodies_are_tensorflows_ops(name: str, conversions: dict[str, Converted]) -> None:
    built, result = branches.EXAMPLES[name](), conversions[name]
    expected = built.run()
    engine_op.reset_stats()
    with engine_op.native_only():
        answer = result.run(built.inputs)
    assert all(relative_error(expected[key], answer[key]) <= FP32 for key in expected)
    assert all(not counts["engine_calls"] and counts["fallbacks"] for counts in engine_op.stats().values())


RUN_ELSEWHERE = """
import sys, numpy as np, tensorflow as tf, stages.engine_op
x = np.load(sys.argv[2])
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], sys.argv[1])
    signature = meta.signature_def["serving_default"]
    feed = {signature.inputs["images"].name: x}
    in_session = session.run(signature.outputs["rows"].name, feed)
model = tf.saved_model.load(sys.argv[1])
in_function = tf.function(lambda x: model.signatures["serving_default"](images=x)["rows"])(tf.constant(x))
np.savez(sys.argv[3], in_session, in_function.numpy())
print(sorted(stages.engine_op.stats().items()))
"""


@pytest.mark.slow
def test_engines_in_a_loop_run_in_another_process_in_a_session_and_a_tf_function(
    conversions: dict[str, Converted], tmp_path: Path
) -> None:
    built = branches.mapped()
    x = branches.inputs(built, 3)["images"]
    moved = tmp_path / "moved"
    (conversions["mapped"].out / "saved_model").rename(moved)
    try:
        np.save(tmp_path / "x.npy", x)
        command = [sys.executable, "-c", RUN_ELSEWHERE, str(moved), str(tmp_path / "x.npy"), str(tmp_path / "y.npz")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    finally:
        moved.rename(conversions["mapped"].out / "saved_model")
    expected = built.module.serve(tf.constant(x))["rows"].numpy()
    answers = np.load(tmp_path / "y.npz")
    assert all(relative_error(expected, answer) <= FP32 for answer in answers.values())
    calls = {"engine_calls": 6, "fallbacks": {}}
    assert done.stdout.splitlines()[-1] == str([("region_0", calls), ("region_1", calls)])


def test_ops_in_bodies_are_named_after_the_node_that_runs_them(conversions: dict[str, Converted]) -> None:
    report = conversions["mapped"].report
    convolutions = [op for region in report.regions for op in region.ops if "Conv2D" in op]
    (loop,) = [op.node for op in report.left_in_tensorflow if op.op == "While"]
    assert convolutions == [f"{loop}/body/Conv2D", f"{loop}/body/Conv2D_1"]
    assert report.ops_in_engines + len(report.left_in_tensorflow) == report.ops_total


def test_weights_that_a_loop_is_given_are_constants_of_its_engines(tmp_path: Path) -> None:
    partition = split_by_rtx(branches.mapped(), tmp_path, backend="onnxruntime")
    net = partition.regions[0]
    assert [tensor.shape for tensor in net.inputs] == [(8, 8, 3)]
    assert net.model.stat().st_size > 4 * (3 * 3 * 3 * 128 + 3 * 3 * 128 * 256)


def test_a_growing_value_gets_a_profile_with_room(tmp_path: Path) -> None:
    ((profile,),) = split_by_rtx(branches.growing(), tmp_path).regions[0].profiles
    assert (profile.minimum[0], profile.maximum[0]) == (1, 32)
    assert (profile.minimum[1], profile.maximum[1]) == (1, 20)


def test_a_loop_is_followed_from_its_first_to_its_last_iteration(tmp_path: Path) -> None:
    main = Scope(Graph(freeze(str(branches.growing().save(tmp_path / "model")), tmp_path / "1")))
    (body,) = main.inner([])
    x = np.ones((2, 6), np.float32)
    calls = body.calls({main.graph.frozen.inputs[0].name: x})
    words = [[tuple(value.shape) for value in call.values() if value.dtype == tf.float32][-1] for call in calls]
    assert words == [(2, 1, 6), (2, 5, 6)]


def test_a_region_in_a_loop_that_does_not_build_stays_in_tensorflow_under_its_full_name(tmp_path: Path) -> None:
    partition = split_by_rtx(branches.mapped(), tmp_path, backend="onnxruntime")
    net, other = partition.regions
    engines = EngineSet(tmp_path, partition, (), tuple(FailedRegion(r.name, "no runner") for r in (net, other)))
    verification = Verification((), (), 0, {}, None)
    report = make_report("m", engines, "fp32", verification, {})
    failed = [op for op in report.left_in_tensorflow if op.reason is Reason.BUILD_FAILED]
    assert (report.ops_in_engines, len(report.left_in_tensorflow)) == (0, report.ops_total)
    assert [op.node for op in failed if op.op == "Conv2D"] == [f"{net.scope}/Conv2D", f"{net.scope}/Conv2D_1"]
    graph = Graph(partition.frozen)
    stitched = stitch_graph(graph, engines, PlanSource.FILE, Policy()).graph_def
    inner = [node for function in stitched.library.function for node in function.node_def]
    assert not [node.name for node in (*stitched.node, *inner) if node.op == "EngineCall"]


def test_keep_in_tf_reaches_into_bodies(tmp_path: Path) -> None:
    partition = split_by_rtx(branches.mapped(), tmp_path, backend="onnxruntime", keep_in_tf=("*/while/body/Conv2D_1",))
    kept = [op.node for op in partition.left if op.reason is Reason.USER]
    assert [name.rsplit("/", 1)[1] for name in kept] == ["Conv2D_1"]


def test_a_loop_that_translates_is_one_engine(tmp_path: Path) -> None:
    partition = split_by_rtx(vision.conv_loop(), tmp_path)
    assert not partition.left
    (region,) = partition.regions
    assert not region.scope


def test_a_branch_becomes_part_of_an_engine_only_if_the_samples_take_all_of_it(tmp_path: Path) -> None:
    """Samples have one and three rows here: what they never run can't be compared, but can by itself."""
    both = split_by_rtx(branches.choice(2), tmp_path / "both", backend="onnxruntime")
    assert [region.scope for region in both.regions] == [""]
    assert not both.left
    one = split_by_rtx(branches.choice(100), tmp_path / "one", backend="onnxruntime")
    assert {region.scope.rsplit("/", 1)[-1] for region in one.regions if region.scope} == {"then_branch", "else_branch"}
    (branch,) = [op for op in one.left if op.op in ("If", "StatelessIf")]
    assert branch.reason is Reason.CONTROL_FLOW
    assert branch.detail.endswith("then_branch, which is split by itself")


def test_a_frozen_pb_carries_the_engines_of_its_loops(tmp_path: Path) -> None:
    built = branches.mapped()
    function = built.module.serve.get_concrete_function()
    frozen = convert_variables_to_constants_v2(function, lower_control_flow=False)
    (tmp_path / "model.pb").write_bytes(frozen.graph.as_graph_def().SerializeToString())
    settings = Config(backend="onnxruntime", min_region=3, inputs=("images:0",), outputs=("Identity:0",))
    report = convert(tmp_path / "model.pb", tmp_path / "out", settings)
    assert len(report.regions) == 2
    x = branches.inputs(built, 3)["images"]
    engine_op.reset_stats()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph_def = tf.compat.v1.GraphDef.FromString((tmp_path / "out/model.pb").read_bytes())
        tf.import_graph_def(graph_def, name="")
        answer = session.run("Identity:0", {"images:0": x})
    assert relative_error(built.module.serve(tf.constant(x))["rows"].numpy(), answer) <= FP32
    assert {counts["engine_calls"] for counts in engine_op.stats().values()} == {3}


class _Counting(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = branches._Net(50)
        self.steps = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, "images")])
    def serve(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        def step(count: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            self.steps.assign_add(1)
            return count + 1, total + self.net(images * tf.cast(count, tf.float32))

        total = tf.while_loop(lambda count, _: count < 3, step, (0, tf.zeros([tf.shape(images)[0], 4])))[1]
        return {"total": total, "steps": self.steps.read_value()}


def test_a_variable_that_a_loop_writes_is_written_as_often_as_before(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    built = example(_Counting(), {"images": Weights(51).array(2, 8, 8, 3)})
    result = converted(built, backend="onnxruntime", min_region=3, verify=False)
    assert any("Conv2D" in op for op in result.in_engines)
    model = tf.saved_model.load(str(result.out / "saved_model"))
    serve = model.signatures["serving_default"]
    x = tf.constant(built.inputs["images"])
    for _ in range(2):
        expected, answer = built.module.serve(x), serve(images=x)
        assert int(expected["steps"]) == int(answer["steps"])
        assert relative_error(expected["total"].numpy(), answer["total"].numpy()) <= FP32


class _Shared(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = branches._Net(52)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, "images")])
    def serve(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        @tf.function
        def rows(x: tf.Tensor) -> tf.Tensor:
            one = lambda image: branches.aside(self.net(image[None]))[0]  # noqa: E731
            return tf.map_fn(one, x, fn_output_signature=tf.TensorSpec([4], tf.float32))

        return {"first": rows(images), "second": rows(images * 0.5)}


def test_one_function_that_two_loops_run_is_replaced_for_both(converted: Callable[..., Converted]) -> None:
    built = example(_Shared(), {"images": Weights(53).array(2, 8, 8, 3)})
    result = converted(built, backend="onnxruntime", min_region=3)
    assert len(result.report.regions) == 2
    engine_op.reset_stats()
    expected, answer = built.run(), result.run(built.inputs)
    assert all(relative_error(expected[key], answer[key]) <= FP32 for key in expected)
    assert [counts["engine_calls"] for counts in engine_op.stats().values()] == [2, 2]


def test_a_body_that_fails_on_the_samples_stays_in_tensorflow_with_the_reason(tmp_path: Path) -> None:
    class Failing(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = branches._Net(54)

        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, "images")])
        def serve(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
            def never() -> tf.Tensor:
                tf.debugging.assert_greater(images, 5.0, "too dark")
                return self.net(images)

            return {"rows": tf.cond(tf.reduce_mean(images) > 5.0, never, lambda: images[:, 0, 0, :1] * tf.ones([4]))}

    built = example(Failing(), {"images": Weights(55).array(2, 8, 8, 3)})
    partition = split_by_rtx(built, tmp_path, backend="onnxruntime")
    assert not partition.regions
    (net,) = {op.detail for op in partition.left if op.op == "Conv2D"}
    assert "too dark" in net


def test_find_names_a_body_that_is_not_there(tmp_path: Path) -> None:
    graph = Graph(freeze(str(vision.conv_loop().save(tmp_path / "model")), tmp_path / "1"))
    (loop,) = [node.name for node in graph.nodes if "While" in node.op]
    assert find(graph, f"{loop}/body").scope == f"{loop}/body"
    with pytest.raises(StitchError, match="no such branch or loop"):
        find(graph, "elsewhere/body")
