"""EngineCalls from several threads, with few threads, and while the interpreter exits."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from stages import engine_op
from stages.engine_op.reasons import CannotRun, Reason
from stages.engine_op.registry import Registry
from tests.engine_op_models import affine_call, run_python

ENGINE, NATIVE = 5.0, 1.0


@pytest.fixture(autouse=True)
def fresh_counters() -> None:
    engine_op.reset_stats()


@pytest.mark.parametrize("damaged", [False, True])
def test_threads_with_mixed_batch_sizes_get_their_own_answers(tmp_path: Path, damaged: bool) -> None:
    region = f"mixed_{damaged}"
    offset = NATIVE if damaged else ENGINE + 50
    if damaged:
        (tmp_path / f"{region}.onnx").write_bytes(b"damaged")
    model = tf.function(
        lambda x: affine_call(x, tmp_path, region, plan_offset=ENGINE + 50 + damaged),
        input_signature=[tf.TensorSpec((None, 3))],
    )
    start = threading.Barrier(8)

    def client(seed: int) -> None:
        random = np.random.default_rng(seed)
        start.wait()  # so that all of them load the engine together
        for _ in range(50):
            x = random.standard_normal((random.integers(0, 9), 3), np.float32)
            y, positive = model(tf.constant(x))
            np.testing.assert_allclose(y, 2 * x + offset, rtol=1e-5, atol=1e-5)
            np.testing.assert_array_equal(positive, x > 0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))
    found = engine_op.stats()[region]
    assert found["engine_calls"] + sum(found["fallbacks"].values()) == 400
    assert found["fallbacks"] == ({"plan damaged": 400} if damaged else {})


FOUR_IN_PARALLEL = """
    import json, sys
    from pathlib import Path
    import tensorflow as tf
    from stages import engine_op
    from tests.engine_op_models import affine_call
    folder, damaged, mode = Path(sys.argv[1]), sys.argv[2] == "native", sys.argv[3]
    for i in range(4):
        if damaged:
            (folder / f"r{i}.onnx").write_bytes(b"damaged")
    def four(x):
        return tf.add_n([affine_call(x, folder, f"r{i}", plan_offset=float(i))[0] for i in range(4)])
    if mode == "session":
        config = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=1, intra_op_parallelism_threads=1)
        with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
            y = four(tf.compat.v1.placeholder_with_default(tf.ones((2, 3)), (None, 3)))
            for _ in range(20):
                value = session.run(y)
    else:
        tf.config.threading.set_inter_op_parallelism_threads(1)
        tf.config.threading.set_intra_op_parallelism_threads(1)
        model = tf.function(four)
        for _ in range(20):
            value = model(tf.ones((2, 3))).numpy()
    assert (value == (12.0 if damaged else 14.0)).all(), value
    print(json.dumps(engine_op.stats()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["session", "function"])
@pytest.mark.parametrize("path", ["engine", "native"])
def test_four_in_parallel_on_one_inter_op_thread_do_not_hang(tmp_path: Path, path: str, mode: str) -> None:
    stats = json.loads(run_python(FOUR_IN_PARALLEL, str(tmp_path), path, mode, timeout_seconds=120).stdout)
    assert len(stats) == 4
    expected = {"engine_calls": 20, "fallbacks": {}}
    if path == "native":
        expected = {"engine_calls": 0, "fallbacks": {"plan damaged": 20}}
    assert all(region == expected for region in stats.values())


EXIT_WHILE_TENSORFLOW_CALLS = """
    import sys
    from pathlib import Path
    import tensorflow as tf
    from tests.engine_op_models import affine_call
    data = tf.data.Dataset.range(10**9).map(
        lambda i: affine_call(tf.fill((64, 3), tf.cast(i, tf.float32)), Path(sys.argv[1]), "exit", plan_offset=5.0)[0],
        num_parallel_calls=4).prefetch(8)
    iterator = iter(data)
    for _ in range(int(sys.argv[2])):
        next(iterator)
"""


@pytest.mark.slow
@pytest.mark.parametrize("calls", [1, 20, 100])
def test_interpreter_exits_while_calls_run(tmp_path: Path, calls: int) -> None:
    """On TensorFlow's own threads. Daemon threads of Python are another matter: there a process that calls plain
    TensorFlow as it exits aborts in half of all runs ("exception not rethrown", Python 3.11), without any EngineCall."""
    run_python(EXIT_WHILE_TENSORFLOW_CALLS, str(tmp_path), str(calls), timeout_seconds=120)


CALLS_IN_ONE_RUN = 200


def seconds_beside_a_busy_python_thread(folder: Path, region: str) -> float:
    """Median time of one Session.run with 200 EngineCalls one after the other, while a Python thread computes."""
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder(tf.float32, (None, 3))

        def body(i: tf.Tensor, v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return i + 1, 0.5 * affine_call(v, folder, region, plan_offset=ENGINE)[0]

        y = tf.while_loop(lambda i, v: i < CALLS_IN_ONE_RUN, body, (0, x))[1]
    busy, done, seconds = threading.Event(), threading.Event(), []

    def compute() -> None:
        busy.set()
        while not done.is_set():
            sum(range(1000))

    with tf.compat.v1.Session(graph=graph) as session, ThreadPoolExecutor(1) as pool:
        call = session.make_callable(y, [x])
        call(np.ones((4, 3)))
        pool.submit(compute)
        busy.wait()
        for _ in range(5):
            start = time.perf_counter()
            call(np.ones((4, 3)))
            seconds.append(time.perf_counter() - start)
        done.set()
    return float(np.median(seconds))


def test_native_calls_do_not_wait_for_a_busy_python_thread(tmp_path: Path) -> None:
    with engine_op.native_only():
        seconds = seconds_beside_a_busy_python_thread(tmp_path, "busy_native")
    # The interpreter's lock changes hands every 5 ms: had each call to wait for it, this would take a second.
    assert seconds < 0.5


def test_cpu_engine_calls_wait_for_a_busy_python_thread_at_most_twice(tmp_path: Path) -> None:
    # ONNX Runtime is called through Python: the lock is taken at the start and after the run, 5 ms at worst each.
    seconds = seconds_beside_a_busy_python_thread(tmp_path, "busy_engine")
    assert seconds < CALLS_IN_ONE_RUN * 0.02
    assert engine_op.stats()["busy_engine"]["fallbacks"] == {}


class Loaded:
    """Stands for a session; the registry never looks inside."""

    def run(self, inputs: object, outputs: object, allocate: object) -> None: ...


def test_registry_loads_once_for_threads_that_ask_together() -> None:
    registry, loads, started = Registry(), [], threading.Barrier(8)

    def load() -> Loaded:
        loads.append(1)
        threading.Event().wait(0.2)
        return Loaded()

    def ask(_: int) -> object:
        started.wait()
        return registry.acquire(("digest", "cpu"), load)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(8)))) == 1
    assert len(loads) == 1
    assert registry.users() == {("digest", "cpu"): 8}


def test_registry_loads_one_engine_while_another_loads() -> None:
    registry, loading, release = Registry(), threading.Event(), threading.Event()

    def slow() -> Loaded:
        loading.set()
        assert release.wait(60)
        return Loaded()

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(registry.acquire, ("slow", "cpu"), slow)
        assert loading.wait(60)
        registry.acquire(("quick", "cpu"), Loaded)
        release.set()
        first.result()


def test_registry_forgets_a_refusal_with_its_last_user() -> None:
    registry = Registry()

    def refuse() -> Loaded:
        raise CannotRun(Reason.PLAN_DAMAGED, "by lightning")

    with pytest.raises(CannotRun, match="plan damaged: by lightning"):
        registry.acquire(("digest", "cpu"), refuse)
    assert registry.users() == {}
    assert registry.acquire(("digest", "cpu"), Loaded) is not None
