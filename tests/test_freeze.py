"""Freezing: the graph computes the same, and nothing that it needs is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from fixtures import cuts, stateful, text, vision
from fixtures.example import Example
from stages import artifacts, sources, storage
from stages.artifacts import FrozenGraph
from stages.freeze import freeze

STATELESS = {
    "detector": vision.detector,
    "conv_loop": vision.conv_loop,
    "zero_size": vision.zero_size,
    "unknown_rank": vision.unknown_rank,
    "diamond": cuts.diamond,
    "two_outputs": cuts.two_outputs,
    "integer_boundary": cuts.integer_boundary,
    "set_shape": cuts.set_shape,
}
KERAS = {
    "small_cnn": (vision.small_cnn, vision.small_cnn_inputs),
    "encoder_block": (text.encoder_block, text.encoder_block_inputs),
    "wide_dense": (text.wide_dense, text.wide_dense_inputs),
}


@pytest.fixture(autouse=True)
def plain_execution() -> Iterator[None]:
    """Without Grappler's fusions both sides compute bit by bit the same."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


def run_frozen(frozen: FrozenGraph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run `graph.pb` with its weights, captured resources and inputs fed, and its side effects fetched."""
    for function in frozen.graph_def().library.function:
        context.context().add_function_def(function)
    feeds = {tensor.name: inputs[name] for tensor, name in zip(frozen.inputs, frozen.input_names, strict=True)}
    captured = dict(sources.reopen(frozen).captured) if frozen.captures else {}
    placeholders = [*feeds, *(f"{weight.node}:0" for weight in frozen.weights), *(f"{node}:0" for node in captured)]
    values = [
        *(tf.constant(value) for value in feeds.values()),
        *(tf.constant(artifacts.load_weight(frozen, weight)) for weight in frozen.weights),
        *captured.values(),
    ]
    fetches = [*(tensor.name for tensor in frozen.outputs), *frozen.side_effects]

    def imported(*arguments: tf.Tensor) -> list[tf.Tensor]:
        found = tf.graph_util.import_graph_def(
            frozen.graph_def(),
            input_map=dict(zip(placeholders, arguments, strict=True)),
            return_elements=fetches,
            name="frozen",
        )
        return found[: len(frozen.outputs)]

    specs = [tf.TensorSpec(value.shape, value.dtype) for value in values[: len(values) - len(captured)]]

    @tf.function(autograph=False)
    def run(*arguments: tf.Tensor) -> list[tf.Tensor]:
        return imported(*arguments, *(tf.compat.v1.get_default_graph().capture(value) for value in captured.values()))

    results = run(*values[: len(specs)])
    return {name: result.numpy() for name, result in zip(frozen.output_names, results, strict=True)}


def assert_same(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray]) -> None:
    assert sorted(got) == sorted(want)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
        assert got[name].dtype == value.dtype


def served(folder: Path, inputs: Mapping[str, np.ndarray], signature: str = "serving_default") -> dict[str, np.ndarray]:
    function = tf.saved_model.load(str(folder)).signatures[signature]
    results = function(**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in results.items()}


def ops(frozen: FrozenGraph) -> list[str]:
    return [node.op for node in frozen.graph_def().node]


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("saved", [True, False], ids=["saved_model", "module"])
def test_frozen_graph_computes_what_the_model_computes(name: str, saved: bool, tmp_path: Path) -> None:
    made = STATELESS[name]()
    want = made.run()
    model: object = made.save(tmp_path / "model") if saved else made.module
    frozen = freeze(model, tmp_path / "frozen")
    assert_same(run_frozen(frozen, made.inputs), want)
    assert frozen.captures == ()
    assert not {"PartitionedCall", "StatefulPartitionedCall", "ReadVariableOp"} & set(ops(frozen))


@pytest.mark.parametrize("name", KERAS)
def test_frozen_keras_model_computes_what_its_export_serves_under_the_same_names(name: str, tmp_path: Path) -> None:
    make, inputs = KERAS[name]
    model = make()
    model.export(str(tmp_path / "exported"), verbose=False)
    live = freeze(model, tmp_path / "live")
    exported = freeze(tmp_path / "exported", tmp_path / "frozen")
    assert_same(run_frozen(live, inputs()), served(tmp_path / "exported", inputs()))
    assert (live.input_names, live.output_names) == (exported.input_names, exported.output_names)
    assert [(t.dtype, t.shape) for t in live.inputs] == [(t.dtype, t.shape) for t in exported.inputs]
    np.testing.assert_array_equal(
        run_frozen(live, inputs(3))["output_0"], model(inputs(3)[live.input_names[0]]).numpy()
    )


def test_several_keras_inputs_and_outputs_keep_the_names_and_order_of_the_export(tmp_path: Path) -> None:
    layers = tf.keras.layers
    right, left = layers.Input((4,), name="right"), layers.Input((4,), name="left")
    sums = [layers.Dense(2)(right + left * index) for index in range(11)]
    model = tf.keras.Model([right, left], sums)
    model.export(str(tmp_path / "exported"), verbose=False)
    frozen = freeze(model, tmp_path / "frozen")
    exported = freeze(tmp_path / "exported", tmp_path / "second")
    assert frozen.input_names == exported.input_names == ("left", "right")
    assert frozen.output_names == exported.output_names
    inputs = {"left": np.ones((2, 4), np.float32), "right": np.full((2, 4), 3, np.float32)}
    assert_same(run_frozen(frozen, inputs), served(tmp_path / "exported", inputs))


def test_batch_norm_runs_in_inference_mode(tmp_path: Path) -> None:
    frozen = freeze(vision.small_cnn(), tmp_path / "frozen")
    one, many = vision.small_cnn_inputs(1), vision.small_cnn_inputs(5)
    alone = run_frozen(frozen, one)["output_0"]
    many["image"][0] = one["image"][0]
    np.testing.assert_allclose(run_frozen(frozen, many)["output_0"][0], alone[0], rtol=1e-5)
    assert frozen.side_effects == ()


def test_large_weights_lie_outside_the_protobuf(tmp_path: Path) -> None:
    frozen = freeze(text.wide_dense(), tmp_path / "frozen")
    assert [weight.shape for weight in frozen.weights] == [(1024, 1024)]
    assert (frozen.folder / "graph.pb").stat().st_size < 20_000
    node = next(node for node in frozen.graph_def().node if node.name == frozen.weights[0].node)
    assert node.op == "Placeholder"
    assert node.attr["_graftrt_weight"].b
    assert [dim.size for dim in node.attr["shape"].shape.dim] == [1024, 1024]


def test_bfloat16_weights_survive_their_file(tmp_path: Path) -> None:
    kernel = tf.Variable(tf.cast(tf.random.stateless_normal([1024, 1024], [1, 2]), tf.bfloat16))
    module = tf.Module()
    module.kernel = kernel
    module.serve = tf.function(
        lambda x: {"y": x @ kernel}, input_signature=[tf.TensorSpec([2, 1024], tf.bfloat16, "x")]
    )
    frozen = freeze(module, tmp_path / "frozen")
    value = artifacts.load_weight(frozen, frozen.weights[0])
    assert value.dtype == tf.bfloat16.as_numpy_dtype
    np.testing.assert_array_equal(value, kernel.numpy())


def test_large_constants_of_a_pb_are_moved_out_too(tmp_path: Path) -> None:
    value = np.random.RandomState(0).rand(600, 600).astype(np.float32)
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 600], "x")
        tf.matmul(x, tf.constant(value), name="y")
    (tmp_path / "model.pb").write_bytes(graph.as_graph_def().SerializeToString())
    frozen = freeze(tmp_path / "model.pb", tmp_path / "frozen")
    assert len(frozen.weights) == 1
    inputs = np.ones((2, 600), np.float32)
    np.testing.assert_array_equal(run_frozen(frozen, {"x": inputs})["y"], tf.matmul(inputs, value).numpy())


def test_shapes_set_from_python_are_restored_by_importing_the_graph(tmp_path: Path) -> None:
    frozen = freeze(cuts.set_shape().save(tmp_path / "model"), tmp_path / "frozen")
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(frozen.graph_def(), name="")
    decoded = [op for op in graph.get_operations() if op.type == "DecodeRaw"]
    assert [None, 4] in [op.outputs[0].shape.as_list() if op.outputs[0].shape.rank else None for op in decoded]
    gathered = [op.outputs[0].shape for op in graph.get_operations() if op.type == "GatherV2"]
    assert [shape.as_list() for shape in gathered] == [[None, 4]]


def test_loop_bodies_read_constants_instead_of_variables(tmp_path: Path) -> None:
    frozen = freeze(vision.conv_loop().save(tmp_path / "model"), tmp_path / "frozen")
    inner = {node.op for function in frozen.graph_def().library.function for node in function.node_def}
    assert "Conv2D" in inner
    assert "ReadVariableOp" not in inner
    assert {"While", "StatelessWhile"} & set(ops(frozen))


def test_freezing_twice_gives_the_same_bytes_though_functions_are_numbered_anew(tmp_path: Path) -> None:
    saved = vision.conv_loop().save(tmp_path / "model")
    first, second = (freeze(saved, tmp_path / name) for name in ("first", "second"))
    assert (first.folder / "graph.pb").read_bytes() == (second.folder / "graph.pb").read_bytes()


def test_variables_gathered_from_in_a_loop_and_a_branch_become_constants(tmp_path: Path) -> None:
    module = tf.Module()
    module.table = tf.Variable(np.arange(24, dtype=np.float32).reshape(2, 3, 4))

    def serve(ids: tf.Tensor) -> dict[str, tf.Tensor]:
        def body(step: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return step + 1, total + tf.gather(module.table, ids, batch_dims=1)

        total = tf.while_loop(lambda step, _: step < 3, body, (0, tf.zeros([2, 4])))[1]
        shape = tf.cond(total[0, 0] > 0, lambda: tf.shape(module.table), lambda: tf.shape(module.table) * 2)
        return {"total": total + tf.gather_nd(module.table, [[0, 1], [1, 2]]), "shape": shape}

    module.serve = tf.function(serve, input_signature=[tf.TensorSpec([2], tf.int32, "ids")])
    inputs = {"ids": np.array([2, 1], np.int32)}
    want = {name: value.numpy() for name, value in module.serve(tf.constant(inputs["ids"])).items()}
    frozen = freeze(module, tmp_path / "frozen")
    assert frozen.captures == ()
    assert_same(run_frozen(frozen, inputs), want)


def test_tables_stay_captured_and_are_found_again(tmp_path: Path) -> None:
    made = stateful.table_front_end()
    want = made.run()
    frozen = freeze(made.save(tmp_path / "model"), tmp_path / "frozen")
    assert len(frozen.captures) == 1
    loaded = storage.load(FrozenGraph, tmp_path / "frozen")
    assert loaded == frozen
    assert_same(run_frozen(loaded, made.inputs), want)


@pytest.mark.parametrize("live", ["module", "keras"])
def test_live_models_with_tables_are_saved_into_the_artifact_and_still_run_when_it_moves(
    live: str, tmp_path: Path
) -> None:
    if live == "module":
        made = stateful.table_front_end()
        model, inputs, want = made.module, made.inputs, made.run()
    else:
        model, inputs = text.text_classifier(), text.text_classifier_inputs()
        want = {"output_0": model(tf.constant(inputs["text"])).numpy()}
    freeze(model, tmp_path / "frozen")
    (tmp_path / "frozen").rename(tmp_path / "moved")
    moved = storage.load(FrozenGraph, tmp_path / "moved")
    assert moved.captures
    assert_same(run_frozen(moved, inputs), want)


def test_side_effects_that_no_output_needs_still_run(tmp_path: Path) -> None:
    made = stateful.control_dependency()
    made.save(tmp_path / "model")
    frozen = freeze(tmp_path / "model", tmp_path / "frozen", signature="count_only")
    assert len(frozen.side_effects) == 1
    reopened = sources.reopen(frozen)
    handle = reopened.captured[0][1]

    def imported(x: tf.Tensor) -> tf.Tensor:
        found = tf.graph_util.import_graph_def(
            frozen.graph_def(),
            input_map={
                frozen.inputs[0].name: x,
                f"{frozen.captures[0].node}:0": tf.compat.v1.get_default_graph().capture(handle),
            },
            return_elements=[frozen.outputs[0].name, *frozen.side_effects],
        )
        return found[0]

    run = tf.function(imported, autograph=False)
    run(tf.constant(made.inputs["x"]))
    run(tf.constant(made.inputs["x"]))
    assert tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.int64).numpy() == 20


def test_an_assignment_happens_before_the_read_that_follows_it(tmp_path: Path) -> None:
    made = stateful.control_dependency()
    made.save(tmp_path / "model")
    frozen = freeze(tmp_path / "model", tmp_path / "frozen")
    assert_same(run_frozen(frozen, made.inputs), served(tmp_path / "model", made.inputs))
    assert run_frozen(frozen, made.inputs)["calls"] == 1


def test_a_variable_that_another_signature_writes_is_no_constant(tmp_path: Path) -> None:
    made = stateful.two_signatures()
    made.save(tmp_path / "model")
    frozen = freeze(tmp_path / "model", tmp_path / "frozen")
    assert len(frozen.captures) == 1
    assert ops(frozen).count("ReadVariableOp") == 1
    assert set(sources.reopen(frozen).signatures) == {"serving_default", "update"}
    assert_same(run_frozen(frozen, made.inputs), served(tmp_path / "model", made.inputs))


def test_only_what_the_chosen_outputs_need_is_kept(tmp_path: Path) -> None:
    made: Example = cuts.two_outputs()
    frozen = freeze(made.save(tmp_path / "model"), tmp_path / "frozen", outputs=["left"])
    assert frozen.output_names == ("left",)
    assert ops(frozen).count("MatMul") == 2


@pytest.mark.slow
def test_resnet50_freezes_in_seconds_without_a_copy_of_its_weights(tmp_path: Path) -> None:
    import time
    import tracemalloc

    model = tf.keras.applications.ResNet50(weights=None)
    start = time.perf_counter()
    frozen = freeze(model, tmp_path / "frozen")
    seconds = time.perf_counter() - start
    assert seconds < 30
    assert (frozen.folder / "graph.pb").stat().st_size < 40 << 20
    tracemalloc.start()
    freeze(model, tmp_path / "again")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20
