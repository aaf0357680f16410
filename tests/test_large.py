"""Models whose weights stay outside protobufs, from the source to the stitched model, and the memory that this takes."""

from __future__ import annotations

import ast
import logging
import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tensorflow as tf

from benchmarks.large_model import measure
from benchmarks.memory import run_measured
from fixtures import vision
from fixtures.large import recommender, recommender_inputs
from pipeline.cli import main
from stages import candidates, keras_models, keras_weights, onnx_files, stitch, stitching, weights
from stages.mapped import mapped_constant
from tests.conftest import Converted, relative_error
from tests.engine_op_models import plan_of
from tests.test_bad_input import limited

ROOT = Path(__file__).parent.parent
MIB = 1 << 20


@pytest.fixture
def all_weights_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGE_BYTES", 256)
    monkeypatch.setattr(candidates, "STREAMED_BYTES", 0)


def kernels() -> tf.keras.Model:
    """Every kind of kernel that tf2onnx transposes or reshapes. `image` (N, 16, 16, 3) → (N, 5)."""
    tf.keras.utils.set_random_seed(0)
    layer = tf.keras.layers
    image = layer.Input((16, 16, 3), name="image")
    hidden = layer.Conv2D(8, 3, padding="same", activation="relu")(image)
    hidden = layer.DepthwiseConv2D(5, depth_multiplier=2, padding="same")(hidden)
    hidden = layer.Conv2DTranspose(8, 3, strides=2, padding="same", activation="relu")(hidden)
    hidden = layer.SeparableConv2D(16, 3)(hidden)
    hidden = layer.Flatten()(layer.MaxPooling2D(4)(hidden))
    return tf.keras.Model(image, layer.Dense(5)(hidden))


@pytest.mark.usefixtures("all_weights_are_large")
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [({}, 1e-5), ({"backend": "onnxruntime", "precision": "fp16"}, 2e-3)],
    ids=["fp32", "fp16"],
)
def test_kernels_beside_the_model_are_those_of_tensorflow(
    converted: Callable[..., Converted], settings: dict[str, str], tolerance: float
) -> None:
    model = kernels()
    result = converted(model, **settings)
    assert result.report.ops_in_engines == result.report.ops_total
    exported = onnx.load(result.out / "regions/region_0/model.onnx", load_external_data=False)
    inside = [tensor.name for tensor in exported.graph.initializer if len(tensor.raw_data) > 256]
    assert not inside
    outside = {tensor.name for tensor in exported.graph.initializer if onnx_files.key_of(tensor) is not None}
    moved = [n for n in exported.graph.node if n.op_type in ("Transpose", "Reshape") and n.input[0] in outside]
    assert len(outside) >= 6
    assert not moved
    image = np.random.default_rng(1).random((3, 16, 16, 3), np.float32)
    assert relative_error(model(image).numpy(), result.run({"image": image})["output_0"]) <= tolerance


@pytest.mark.usefixtures("all_weights_are_large")
def test_a_graph_def_holds_the_weights_beside_its_plans(converted: Callable[..., Converted], tmp_path: Path) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 16], "x")
        tf.nn.softmax(tf.nn.relu(tf.matmul(x, tf.constant(np.eye(16, 8, dtype=np.float32)))), name="y")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    result = converted(str(tmp_path / "graph.pb"), backend="onnxruntime", min_region=1)
    program = (
        "import sys, tensorflow as tf, stages.engine_op as op; g = tf.compat.v1.GraphDef(); "
        "g.ParseFromString(open(sys.argv[1], 'rb').read()); tf.compat.v1.import_graph_def(g, name=''); "
        "print(tf.compat.v1.Session().run('y:0', {'x:0': [[3.0] + 15 * [0.0]]})[0][0], op.stats())"
    )
    # In an empty folder, and another process: nothing but the file.
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
         "import tensorflow as tf; tf.compat.v1.disable_eager_execution(); " + program, result.out / "model.pb"],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert "'engine_calls': 1, 'fallbacks': {}" in done.stdout, done.stderr
    assert float(done.stdout.split()[0]) == pytest.approx(np.exp(3) / (np.exp(3) + 7), rel=1e-5)


@pytest.mark.usefixtures("all_weights_are_large")
def test_a_graph_def_that_would_be_too_large_is_refused_before_weights_are_read(
    converted: Callable[..., Converted],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, [None, 16], "x")
        tf.nn.softmax(tf.nn.relu(tf.matmul(x, tf.constant(np.eye(16, 8, dtype=np.float32)))), name="y")
    (tmp_path / "graph.pb").write_bytes(graph.as_graph_def().SerializeToString())
    monkeypatch.setattr(stitch, "EMBEDDED_LIMIT_BYTES", 1024)

    def read(*arguments: object) -> None:
        raise AssertionError("a weight was read for a GraphDef that is not written")

    monkeypatch.setattr(stitching, "load_weight", read)
    monkeypatch.setattr(stitching, "embedded_plan", read)
    with caplog.at_level(logging.WARNING):
        result = converted(str(tmp_path / "graph.pb"), backend="onnxruntime", min_region=1)
    assert not (result.out / "model.pb").exists()
    assert "no model.pb" in caplog.text
    assert "use saved_model/" in caplog.text


SERVE = """
import sys
import numpy as np, tensorflow as tf
from stages import engine_op
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
print(next(iter(serve(image=tf.constant(np.load(sys.argv[2]))).values())).numpy().tolist())
print(engine_op.stats())
"""


@pytest.mark.usefixtures("all_weights_are_large")
def test_weights_beside_a_plan_are_checked_before_they_are_used(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    model, image = vision.small_cnn(), vision.small_cnn_inputs()["image"]
    result = converted(model, backend="onnxruntime")
    np.save(tmp_path / "image.npy", image)
    (file,) = (result.out / "saved_model/assets").glob("*.weights")
    whole = file.read_bytes()
    for data, fallbacks in ((whole, {}), (whole[:-1] + b"?", {"plan damaged": 1}), (None, {"plan missing": 1})):
        file.unlink()
        if data is not None:
            file.write_bytes(data)
        arguments = [sys.executable, "-c", SERVE, str(result.out / "saved_model"), str(tmp_path / "image.npy")]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        values, stats = map(ast.literal_eval, done.stdout.splitlines())
        assert relative_error(model(image).numpy(), np.array(values, np.float32)) <= 1e-5
        assert stats["region_0"] == {"engine_calls": int(not fallbacks), "fallbacks": fallbacks}


@pytest.mark.usefixtures("all_weights_are_large")
def test_weights_of_a_signature_that_is_kept_are_not_there_twice(
    converted: Callable[..., Converted], tmp_path: Path
) -> None:
    """Keras's export has a second signature, `serve`, which reads the same variables."""
    from stages import engine_op

    model, image = vision.small_cnn(), vision.small_cnn_inputs()["image"]
    model.export(str(tmp_path / "model"), verbose=False)
    result = converted(str(tmp_path / "model"), backend="onnxruntime")
    names = [name for name, _ in tf.train.list_variables(str(result.out / "saved_model/variables/variables"))]
    assert any(name.startswith("source/") for name in names)
    assert [name for name in names if name.startswith("weights/")] == []
    with engine_op.native_only():
        assert relative_error(model(image).numpy(), result.run({"image": image})["output_0"]) <= 1e-6


def test_weights_of_a_keras_file_are_read_exactly_and_keras_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import keras
    from keras.src.saving import saving_lib

    monkeypatch.setattr(keras_weights, "_LARGE_BYTES", 0)
    model = vision.small_cnn()
    model.save(tmp_path / "model.keras")
    before = keras.Variable._convert_to_tensor, saving_lib.safe_get_h5_dataset
    shared = []
    monkeypatch.setattr(keras_weights, "mapped_constant", lambda value: shared.append(value) or mapped_constant(value))
    loaded = keras_models.open_keras_file(tmp_path / "model.keras").owner
    assert (keras.Variable._convert_to_tensor, saving_lib.safe_get_h5_dataset) == before
    assert len(shared) == len(model.weights)
    for expected, actual in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(expected.numpy(), actual.numpy())


def test_a_tensorrt_plan_is_mapped_and_what_is_mapped_is_checked(tmp_path: Path) -> None:
    from stages.engine_op.engine_set import _checked
    from stages.engine_op.reasons import CannotRun

    path = tmp_path / "plan"
    plan = plan_of(b"a plan", device="gpu", backend="tensorrt_rtx")
    for content, reason in ((None, "plan missing"), (b"", "plan damaged"), (b"a plam", "plan damaged")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CannotRun, match=reason):
            _checked(plan, str(path).encode(), "file")
    path.write_bytes(b"a plan")
    mapped = _checked(plan, str(path).encode(), "file")
    assert isinstance(mapped, mmap.mmap)
    assert mapped[:] == b"a plan"


def test_many_constants_of_less_than_a_mebibyte_leave_the_graph_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "_INSIDE_BYTES", 100_000)
    writer = weights.WeightWriter(tmp_path)
    for number in range(10):
        node = tf.compat.v1.NodeDef(name=f"weight_{number}")
        writer.put(node, np.full((100, 100), number, np.float32), tf.float32)
    assert [weight.node for weight in writer.weights] == [f"weight_{number}" for number in range(3, 10)]


@pytest.mark.slow
def test_a_disk_that_fills_up_is_a_stated_error_in_every_stage_that_writes_models_or_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may have half the size of the dense layer. A plan that can't be written says nothing about its region."""
    monkeypatch.setenv("GRAFTRT_CACHE_DIR", str(tmp_path / "cache"))
    tf.keras.utils.set_random_seed(0)
    layer = tf.keras.layers
    image = layer.Input((400,))
    tf.keras.Model(image, layer.Dense(4, "softmax")(layer.Dense(2000, "relu")(image))).save(tmp_path / "m.keras")
    assert main(["freeze", str(tmp_path / "m.keras"), str(tmp_path / "freeze"), "-q"]) == 0
    previous = tmp_path / "freeze"
    for stage in ("export", "split", "build"):
        before = {path.name for path in tmp_path.iterdir()} | {"cache"}
        done = limited(3 << 19, stage, previous, tmp_path / "out")
        assert done.returncode == 1, done.stderr
        assert "try: free some disk space" in done.stderr
        assert "Traceback" not in done.stderr
        assert {path.name for path in tmp_path.iterdir()} | {"cache"} == before
        if stage != "build":
            assert main([stage, str(previous), str(tmp_path / stage), "-q"]) == 0
            previous = tmp_path / stage


@pytest.mark.slow
def test_weights_are_in_no_protobuf_and_in_memory_less_than_three_times(tmp_path: Path) -> None:
    """300 MB of weights, less than which TensorFlow itself takes: what imports alone take is not counted."""
    from stages import engine_op

    rows, wide = 28_000, 4096
    size = (rows + 2 * wide) * 2048 * 4
    recommender(rows, wide).export(str(tmp_path / "model"), verbose=False)
    convert = [sys.executable, "-m", "pipeline", "convert", str(tmp_path / "model"), str(tmp_path / "out")]
    options = ["--backend", "onnxruntime", "--keep-stages", "-q"]
    idle = run_measured([sys.executable, "-c", "import stages.engine_op, onnxruntime, tf2onnx"], cwd=ROOT)
    done = run_measured([*convert, *options], cwd=ROOT)
    assert done.returncode == 0
    protobufs = [*tmp_path.glob("out/**/*.pb"), *tmp_path.glob("out/**/*.onnx")]
    assert len(protobufs) >= 5
    assert {path.name: path.stat().st_size for path in protobufs if path.stat().st_size > MIB} == {}
    assert (done.usage.anonymous - idle.usage.anonymous) / size < 3
    engine_op.load()
    served = tf.saved_model.load(str(tmp_path / "out/saved_model")).signatures["serving_default"]
    inputs = {name: tf.constant(value) for name, value in recommender_inputs(rows).items()}
    original = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    (expected,), (actual,) = original(**inputs).values(), served(**inputs).values()
    assert relative_error(expected.numpy(), actual.numpy()) <= 1e-5


@pytest.mark.survey
@pytest.mark.timeout(1800)
def test_a_model_of_more_than_2_gib_takes_less_than_three_times_its_weights(tmp_path: Path) -> None:
    rows, wide = 270_000, 8192
    size = (rows + 2 * wide) * 2048 * 4
    usages = measure(tmp_path, rows, wide, layers=1)
    assert {name: usage.pss / size for name, usage in usages.items() if usage.pss > 3 * size} == {}
