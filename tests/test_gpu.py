"""Engines on a real GPU, inside TensorFlow.

Run with `make test-gpu`, which sets NVIDIA_TF32_OVERRIDE=0: TensorRT for RTX 1.6.1 takes TF32 for float32 kernels
whatever the builder's flag says, and must be built and run with the variable to compute in IEEE float32.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from fixtures import branches, cuts, text, vision
from fixtures.example import Example
from pipeline import shape_range
from stages import engine_op
from stages.engine_op.cuda import DeviceMemory
from stages.engine_op.interface import Interface, Plan
from stages.engine_op.trt_engine import TensorRtEngine
from stages.engine_op.trt_graphs import wait_for_captures
from tests.conftest import Converted, relative_error
from tests.engine_op_models import affine_interface, affine_model, affine_segment, run_python

pytestmark = pytest.mark.gpu

Convert = Callable[..., Converted]

BATCHES = (1, 8, 32, 128)
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-3}
"""Relative errors."""
SEEDED_FP16 = 2e-2
"""For `keras:ResNet50`, whose weights are drawn so that its answers differ, in fp16: 1.1e-2 was measured on an H100.
TensorRT for RTX 1.6.1 sums convolutions in half precision (3.7e-3 for one, 5e-4 if it is made to sum in float32, which
takes twice the time), and a random network does not damp it."""


@pytest.fixture(autouse=True)
def ieee_fp32() -> Iterator[None]:
    """TensorFlow's own TF32 would be the larger error of the two."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
    engine_op.reset_stats()
    yield
    tf.config.experimental.enable_tensor_float_32_execution(True)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small stitched CNN with one profile, batch 1 to 32."""
    from pipeline import convert

    out = tmp_path_factory.mktemp("cnn") / "out"
    convert(vision.small_cnn(), out)
    return out


def signature(out: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The stitched model as a function of its one input."""
    function = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
    ((keyword, _),) = function.structured_input_signature[1].items()
    return lambda value: next(iter(function(**{keyword: tf.constant(value)}).values())).numpy()


@pytest.mark.parametrize(
    ("source", "precision", "tolerance"),
    [
        ("keras", "fp32", TOLERANCE["fp32"]),
        ("keras", "fp16", TOLERANCE["fp16"]),
        ("seeded", "fp32", TOLERANCE["fp32"]),
        ("seeded", "fp16", SEEDED_FP16),
    ],
)
def test_resnet50_equals_tensorflow_at_every_batch_size(
    converted: Convert, source: str, precision: str, tolerance: float
) -> None:
    from benchmarks import models
    from stages.sources import open_model

    model = models.make("ResNet50") if source == "keras" else open_model("keras:ResNet50").owner
    shapes = (
        shape_range("image=1x224x224x3,8x224x224x3,32x224x224x3"),
        shape_range("image=32x224x224x3,64x224x224x3,128x224x224x3"),
    )
    result = converted(model, precision=precision, shapes=_named(model, shapes), max_error=tolerance)
    run = signature(result.out)
    engine_op.reset_stats()
    for batch in BATCHES:
        image = np.random.default_rng(batch).random((batch, 224, 224, 3), np.float32)
        expected = model(image).numpy()
        for _ in range(4):
            assert relative_error(expected, run(image)) <= tolerance
        wait_for_captures()
        for _ in range(2):  # as a CUDA graph now
            assert relative_error(expected, run(image)) <= tolerance
    assert engine_op.stats() == {"region_0": {"engine_calls": 6 * len(BATCHES), "fallbacks": {}}}


def _named(model: object, shapes: tuple[object, ...]) -> tuple[object, ...]:
    name = model.inputs[0].name
    return tuple(replace(entry, input=name) for entry in shapes)


def test_supported_unsupported_supported_runs_two_engines_around_tensorflow(converted: Convert) -> None:
    example = cuts.diamond()
    result = converted(example, min_region=2)
    expected, actual = example.run(), result.run(example.inputs)
    for name, value in expected.items():
        assert relative_error(value, actual[name]) <= TOLERANCE["fp32"]
    assert {region: s["fallbacks"] for region, s in engine_op.stats().items()} == {"region_0": {}, "region_1": {}}


def test_int64_and_bool_boundaries_and_int32_inputs(converted: Convert) -> None:
    example = cuts.integer_boundary()
    result = converted(example)
    expected, actual = example.run(), result.run(example.inputs)
    for name, value in expected.items():
        assert np.allclose(value, actual[name], rtol=1e-4)
    shutil.rmtree(result.out)
    model = text.encoder_block()
    encoder = converted(model)
    run = signature(encoder.out)
    for _ in range(4):
        for batch in (1, 3):
            inputs = text.encoder_block_inputs(batch)
            assert relative_error(model(*inputs.values()).numpy(), run(*inputs.values())) <= TOLERANCE["fp32"]
    assert not engine_op.stats()["region_0"]["fallbacks"]


def test_a_shape_outside_the_profiles_runs_natively_and_is_counted(cnn: Path) -> None:
    run, model = signature(cnn), vision.small_cnn()
    image = np.random.default_rng(0).random((40, 16, 16, 3), np.float32)
    assert relative_error(model(image).numpy(), run(image)) <= TOLERANCE["fp32"]
    assert engine_op.stats()["region_0"] == {"engine_calls": 0, "fallbacks": {"shape outside the profiles": 1}}


@pytest.mark.parametrize("harm", ["plan damaged", "plan missing"])
def test_a_harmed_plan_runs_natively_and_is_counted(cnn: Path, tmp_path: Path, harm: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(cnn, copy)
    (plan,) = (copy / "saved_model/assets").glob("*.plan")
    if harm == "plan missing":
        plan.unlink()
    else:
        data = bytearray(plan.read_bytes())
        data[len(data) // 2] ^= 255
        plan.write_bytes(data)
    run, model = signature(copy), vision.small_cnn()
    image = vision.small_cnn_inputs(3)["image"]
    assert relative_error(model(image).numpy(), run(image)) <= TOLERANCE["fp32"]
    assert engine_op.stats()["region_0"]["fallbacks"] == {harm: 1}


def test_two_profiles_are_chosen_per_call(converted: Convert) -> None:
    model = vision.small_cnn()
    shapes = (shape_range("image=1x16x16x3,1x16x16x3,4x16x16x3"), shape_range("image=8x16x16x3,16x16x16x3,64x16x16x3"))
    result = converted(model, shapes=_named(model, shapes))
    run = signature(result.out)
    engine_op.reset_stats()
    for batch in (1, 4, 8, 64, 2, 32):
        image = np.random.default_rng(batch).random((batch, 16, 16, 3), np.float32)
        assert relative_error(model(image).numpy(), run(image)) <= TOLERANCE["fp32"]
    assert engine_op.stats()["region_0"] == {"engine_calls": 6, "fallbacks": {}}


def test_ten_thousand_calls_of_mixed_sizes_from_eight_threads_are_right_and_memory_stays_flat(cnn: Path) -> None:
    run, model = signature(cnn), vision.small_cnn()
    images = {n: np.random.default_rng(n).random((n, 16, 16, 3), np.float32) for n in (1, 2, 3, 5, 8, 16, 32)}
    expected = {n: model(image).numpy() for n, image in images.items()}
    for image in images.values():
        for _ in range(3):
            run(image)
    wait_for_captures()
    before = tf.config.experimental.get_memory_info("GPU:0")["current"]
    problems: list[str] = []

    def work(seed: int) -> None:
        sizes = np.random.default_rng(seed).choice(list(images), 1250)
        for n in sizes:
            error = relative_error(expected[n], run(images[n]))
            if not error <= TOLERANCE["fp32"]:
                problems.append(f"batch {n}: {error}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    stats = engine_op.stats()["region_0"]
    assert stats["engine_calls"] >= 10_000
    assert not stats["fallbacks"]
    assert tf.config.experimental.get_memory_info("GPU:0")["current"] <= before + (8 << 20)


def test_a_saved_model_runs_in_another_process_within_tensorflows_memory_limit(cnn: Path) -> None:
    program = """
import sys, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("GPU")[0], [tf.config.LogicalDeviceConfiguration(memory_limit=512)])
import stages.engine_op as engine_op
function = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
for _ in range(4):
    function(image=tf.zeros((3, 16, 16, 3)))
print(engine_op.stats())
"""
    done = run_python(program, str(cnn / "saved_model"))
    assert "{'region_0': {'engine_calls': 4, 'fallbacks': {}}}" in done.stdout


def test_policy_fail_raises_on_the_gpu(converted: Convert) -> None:
    result = converted(vision.small_cnn(), on_failure="fail")
    run = signature(result.out)
    with pytest.raises(tf.errors.FailedPreconditionError, match="shape outside the profiles"):
        run(np.zeros((40, 16, 16, 3), np.float32))


PLAN_OFFSET, NATIVE_OFFSET = 1.0, 2.0
"""The engine and the native segment of an affine region differ, so that the result tells who computed it."""


def built_plan(offset: float, folder: Path) -> tuple[Plan, bytes]:
    """A plan of `affine_model` for 1 to 8 rows."""
    from stages.artifacts import ShapeRange
    from stages.backends.base import BuildOptions
    from stages.backends.isolated import Worker

    (folder / "m.onnx").write_bytes(affine_model(offset).SerializeToString())
    sizes = ("input_0", (1, 3), (4, 3), (8, 3))
    with Worker("tensorrt_rtx") as worker:
        outcome = worker.build(folder / "m.onnx", folder / "plan", BuildOptions(profiles=((ShapeRange(*sizes),),)))
        version = worker.version
    assert outcome.built, outcome.failure
    data = (folder / "plan").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return Plan("tensorrt_rtx", "gpu", version, "fp32", digest, len(data), digest, (), ((sizes,),)), data


@pytest.fixture(scope="module")
def affine_plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, bytes]:
    return built_plan(PLAN_OFFSET, tmp_path_factory.mktemp("affine"))


def affine(interface: Interface, plan: bytes, rows: int = 4) -> tuple[np.ndarray, float]:
    """The result for ones, and the offset that computed it."""
    with tf.device("GPU:0"):
        outputs = engine_op.engine_call(
            [tf.ones((rows, 3))], [], [plan], native_segment=affine_segment(NATIVE_OFFSET), interface=interface
        )
    result = outputs[0].numpy()
    return result, float(result[0, 0]) - 2.0


def test_the_affine_plan_runs(affine_plan: tuple[Plan, bytes]) -> None:
    plan, data = affine_plan
    assert affine(affine_interface([plan], "sound", storage="embedded"), data)[1] == PLAN_OFFSET
    assert engine_op.stats()["sound"] == {"engine_calls": 1, "fallbacks": {}}


@pytest.mark.parametrize("on_failure", ["native", "fail"])
@pytest.mark.parametrize(
    "case", ["library version", "plan refused", "engine failed", "out of memory", "backend not installed"]
)
def test_what_can_not_run_answers_natively_or_raises_with_the_same_words(
    affine_plan: tuple[Plan, bytes], case: str, on_failure: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan, data = affine_plan
    rows = 4
    if case == "out of memory":  # engines of the same bytes are shared; this one must be loaded
        plan, data = built_plan(3.0 if on_failure == "native" else 4.0, tmp_path)
    elif case != "engine failed":
        data += f" {case} {on_failure}".encode()
        plan = replace(plan, sha256=hashlib.sha256(data).hexdigest())
    if case == "library version":
        plan = replace(plan, version="0.9.9.9")
    elif case == "plan refused":  # bytes that TensorRT itself does not take
        data = data[len(data) // 2 :]
        plan = replace(plan, sha256=hashlib.sha256(data).hexdigest())
    elif case == "engine failed":  # sizes that TensorRT itself does not take, our own check being blind
        monkeypatch.setattr(TensorRtEngine, "_profile", lambda self, shapes: 0)
        plan, rows = replace(plan, profiles=()), 9
    elif case == "out of memory":  # more than TensorFlow has
        allocate = DeviceMemory.allocate
        monkeypatch.setattr(DeviceMemory, "allocate", lambda self, size: allocate(self, size + (1 << 48)))
    else:
        for module in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
            monkeypatch.setitem(sys.modules, module, None)  # importing it raises ImportError
    region = f"{case} {on_failure}"
    interface = affine_interface([plan], region, storage="embedded", on_failure=on_failure)
    if on_failure == "native":
        assert affine(interface, data, rows)[1] == NATIVE_OFFSET
    else:
        with pytest.raises(tf.errors.FailedPreconditionError, match=case):
            affine(interface, data, rows)
    assert engine_op.stats()[region] == {"engine_calls": 0, "fallbacks": {case: 1}}


def test_calls_in_a_graph_do_not_wait_for_a_python_thread_that_computes(cnn: Path) -> None:
    """Launched graphs need no interpreter: 300 calls inside one tf.while_loop take as long as without the thread."""
    signature = tf.saved_model.load(str(cnn / "saved_model")).signatures["serving_default"]
    image = tf.constant(vision.small_cnn_inputs(8)["image"])
    engine_op.warmup(signature, [{"image": image}])

    @tf.function
    def many() -> tf.Tensor:
        total = tf.zeros(())
        for _ in tf.range(300):
            total += tf.reduce_sum(next(iter(signature(image=image).values())))
        return total

    def seconds() -> float:
        start = time.perf_counter()
        many().numpy()
        return time.perf_counter() - start

    seconds()
    alone = min(seconds() for _ in range(5))
    stop = threading.Event()

    def spin() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        beside = min(seconds() for _ in range(5))
    finally:
        stop.set()
        thread.join()
    # Python takes part once, at the end: two of its switch intervals of 5 ms. Once a call would be 1.5 s.
    assert beside < 2 * alone + 0.05


def test_warmup_leaves_nothing_for_the_first_request(cnn: Path) -> None:
    signature = tf.saved_model.load(str(cnn / "saved_model")).signatures["serving_default"]
    (latency,) = engine_op.warmup(signature, [{"image": np.zeros((7, 16, 16, 3), np.float32)}])
    assert latency.warm_seconds < latency.first_seconds
    start = time.perf_counter()
    next(iter(signature(image=tf.zeros((7, 16, 16, 3))).values())).numpy()
    assert time.perf_counter() - start < latency.first_seconds
    assert not engine_op.stats()["region_0"]["fallbacks"]


def test_sizes_outside_the_profiles_get_an_engine_that_is_built_beside(converted: Convert) -> None:
    model = vision.small_cnn()
    run = signature(converted(model, build_at_runtime=True).out)
    engine_op.reset_stats()
    image = np.random.default_rng(0).random((40, 16, 16, 3), np.float32)
    expected = model(image).numpy()
    assert relative_error(expected, run(image)) <= TOLERANCE["fp32"]
    assert engine_op.stats()["region_0"] == {"engine_calls": 0, "fallbacks": {"shape outside the profiles": 1}}
    end = time.monotonic() + 120
    while not engine_op.stats()["region_0"]["engine_calls"]:
        assert time.monotonic() < end
        start = time.perf_counter()
        assert relative_error(expected, run(image)) <= TOLERANCE["fp32"]
        assert time.perf_counter() - start < 1, "a call waited for the build"
        time.sleep(0.1)
    engine_op.reset_stats()
    for rows in (33, 64):
        run(np.zeros((rows, 16, 16, 3), np.float32))
    assert engine_op.stats()["region_0"] == {"engine_calls": 2, "fallbacks": {}}


@pytest.mark.parametrize("make", [branches.mapped, branches.nested], ids=["loop", "nested"])
def test_engines_in_the_bodies_of_loops_and_branches(converted: Convert, make: Callable[[], Example]) -> None:
    example = make()
    result = converted(example, max_error=TOLERANCE["fp32"])
    expected = example.run()
    for _ in range(4):
        actual = result.run(example.inputs)
        for key, value in expected.items():
            assert np.allclose(value, actual[key], rtol=1e-4, atol=1e-5)
    stats = engine_op.stats()
    assert sum(entry["engine_calls"] for entry in stats.values()) > 0
    assert not any(entry["fallbacks"] for entry in stats.values())
