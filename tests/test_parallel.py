"""Work in parallel processes: the same results as one after the other, and no child is left, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from stages import build, export, exporters, freeze, split
from stages.artifacts import FrozenGraph, OnnxExport, Reason
from stages.backends import crew, isolated
from stages.backends.base import BuildOptions, BuildOutcome, Support
from stages.backends.crew import Crew, Workers
from stages.backends.isolated import Starved, Worker
from stages.candidates import Candidates
from stages.childprocess import ChildProcess, Killed, Lost
from stages.enginecache import EngineCache, compile_region
from stages.exporting import Attempt
from stages.regions import Cut
from stages.storage import sha256_file
from tests import onnx_models as tiny
from tests.test_isolated import gone

ROOT = Path(__file__).parent.parent
OPTIONS = BuildOptions(profiles=(tiny.conv_profile(1, 4, 8),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tiny.conv(), tmp_path / "m.onnx")


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Use so many processes from the start, however many cores there are and however little there is to do."""

    def use(count: int) -> None:
        monkeypatch.setattr(crew, "_PATIENCE_SECONDS", 0.0)
        monkeypatch.setattr(exporters, "WORTH_OPS", 0)
        for module in (crew, exporters):
            monkeypatch.setattr(module, "side_by_side", lambda tasks: min(tasks, count))

    return use


@contextlib.contextmanager
def recorded_pids(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Of the children that are started meanwhile."""
    pids: set[int] = set()
    start = ChildProcess.start

    def recording(child: ChildProcess, what: str, limit_mib: Callable[[], float | None]) -> bytes:
        try:
            return start(child, what, limit_mib)
        finally:
            pids.update({child.pid} - {None})  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ChildProcess, "start", recording)
        yield pids


# A crew.


def test_results_come_in_the_order_of_the_items(model: Path, side_by_side: Callable[[int], None]) -> None:
    side_by_side(3)
    served: set[int | None] = set()

    def ask(workers: Workers, item: int) -> int:
        assert workers[0].check(model).accepted
        served.add(workers[0].pid)
        time.sleep(0.3 / (1 + item))
        return item

    with Crew(Worker("onnxruntime")) as many:
        deadline = time.monotonic() + 20
        while len(served) < 3:
            assert time.monotonic() < deadline
            assert many.map(ask, range(8)) == list(range(8))
    assert all(gone(pid) for pid in served if pid)


def test_little_to_do_starts_no_further_children(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "side_by_side", lambda tasks: 2)
    monkeypatch.setattr(crew, "_PATIENCE_SECONDS", 30.0)
    with recorded_pids(monkeypatch) as pids, Crew(Worker("onnxruntime")) as many:
        many.map(lambda workers, _: workers[0].check(model), range(4))
        assert len(pids) == 1


def test_a_builder_that_times_kernels_works_alone(side_by_side: Callable[[int], None]) -> None:
    side_by_side(2)
    worker = Worker("onnxruntime")
    worker.backend = replace(worker.backend, times_kernels=True)  # type: ignore[type-var]
    with Crew(worker) as one:
        threads = one.map(lambda _, __: threading.get_ident(), range(4))
    assert set(threads) == {threading.get_ident()}


def test_an_exception_ends_running_builds_at_once(tmp_path: Path, side_by_side: Callable[[int], None]) -> None:
    pytest.importorskip("tensorrt_rtx")
    side_by_side(2)
    model = tiny.save(tiny.conv(layers=40), tmp_path / "long.onnx")
    building, pids = threading.Event(), set()

    def work(workers: Workers, item: int) -> None:
        pids.add(workers[0].pid)
        if item:
            building.wait(20)
            raise ValueError("no more")
        building.set()
        while True:  # a build without an end
            workers[0].build(model, tmp_path / "plan", OPTIONS)

    start = time.monotonic()
    with pytest.raises(ValueError, match="no more"), Crew(Worker("tensorrt_rtx")) as many:
        many.map(work, range(5))
    assert time.monotonic() - start < 15
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert not list(tmp_path.glob(".*partial"))


def test_ctrl_c_ends_all_children(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    model = tiny.save(tiny.conv(layers=40), tmp_path / "long.onnx")
    program = f"""
from pathlib import Path
from stages.backends import crew
from stages.backends.base import BuildOptions
from stages.backends.crew import Crew
from stages.backends.isolated import Worker
from tests import onnx_models as tiny
crew.side_by_side = lambda tasks: 2
crew._PATIENCE_SECONDS = 0
options = BuildOptions(profiles=(tiny.conv_profile(1, 4, 8),))
def work(workers, item):
    print(workers[0].pid, flush=True)
    while True:
        workers[0].build(Path({str(model)!r}), Path(f"{tmp_path}/plan_{{item}}"), options)
with Crew(Worker("tensorrt_rtx")) as many:
    many.map(work, range(3))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGINT)
    _, stderr = parent.communicate(timeout=20)
    assert stderr.strip().endswith("KeyboardInterrupt")
    assert all(gone(child) for child in children)
    assert not list(tmp_path.glob(".*partial"))


def test_what_got_no_answer_beside_others_is_asked_again_alone(
    model: Path, tmp_path: Path, side_by_side: Callable[[int], None]
) -> None:
    side_by_side(2)
    asked: list[tuple[int, int]] = []
    both = threading.Barrier(2)

    def work(workers: Workers, item: int) -> BuildOutcome:
        (worker,) = workers
        if not asked:
            time.sleep(0.5)  # until the other one is hired
        asked.append((item, worker.beside))
        if worker.beside > 1:
            both.wait(20)
            if item == 0:
                raise Starved from Lost("as if for want of memory")
        return worker.build(model, tmp_path / f"plan_{item}.onnx", BuildOptions())

    with Crew(Worker("onnxruntime")) as many:
        outcomes = many.map(work, range(2))
    assert [outcome.built for outcome in outcomes] == [True, True]
    assert sorted(asked) == [(0, 1), (0, 2), (1, 2)]


def test_workers_share_what_memory_there_is(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "available_mib", lambda: 2000.0)
    with Worker("onnxruntime") as worker:
        assert worker.check(model).accepted
        worker.beside = 100
        with pytest.raises(Starved) as caught:
            worker.check(model)
        assert "took more than 18 MiB of memory" in str(caught.value.__cause__)
        worker.beside = 1
        assert worker.check(model).accepted


def test_an_abandoned_worker_is_asked_in_vain(model: Path) -> None:
    worker = Worker("onnxruntime")
    worker.start()
    pid = worker.pid
    worker.abandon()
    with pytest.raises(Killed):
        worker.check(model)
    worker.close()
    assert pid is not None
    assert gone(pid)


def test_two_threads_want_one_engine_and_it_is_built_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("GRAFTRT_CACHE_DIR", str(tmp_path / "cache"))
    cache = EngineCache()
    with Worker("tensorrt_rtx") as first, Worker("tensorrt_rtx") as second, ThreadPoolExecutor(2) as threads:
        outcomes = [
            threads.submit(
                compile_region, worker, model, sha256_file(model), OPTIONS, tmp_path / f"{n}.plan", cache=cache
            )
            for n, worker in enumerate((first, second))
        ]
        assert sorted(outcome.result().cached for outcome in outcomes) == [False, True]
    assert (tmp_path / "0.plan").read_bytes() == (tmp_path / "1.plan").read_bytes()


# The stages.


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> FrozenGraph:
    """Four chains with an op between that nobody translates; equal constants, and one op that TensorRT does not take."""
    weights = tf.constant(np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32) / 3)

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, "x")], autograph=False)
    def chains(x: tf.Tensor) -> tf.Tensor:
        for chain in range(4):
            for _ in range(6):
                x = tf.tanh(tf.matmul(x, weights) + 0.3) * 0.7
            if chain == 2:
                x = x + tf.cast(tf.size(tf.unique(tf.reshape(x, [-1]))[0]), tf.float32) * 1e-3
            x = tf.math.bessel_i0e(x)
        return x

    return freeze.freeze(chains.get_concrete_function(), tmp_path_factory.mktemp("frozen") / "frozen")


@pytest.fixture(scope="module")
def exported(frozen: FrozenGraph) -> OnnxExport:
    return export.export(frozen, frozen.folder.parent / "exported", min_region=1)


def all_workers_get_work(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Lets no worker begin before the event, which is set when another one has been hired."""
    hired = threading.Event()
    start, check, build_ = Crew._start, Worker.check, Worker.build

    def starting(self: Crew, workers: Workers) -> None:
        start(self, workers)
        hired.set()

    def checking(self: Worker, model: Path) -> Support:
        assert hired.wait(30)
        return check(self, model)

    def building(self: Worker, model: Path, plan: Path, options: BuildOptions) -> BuildOutcome:
        assert hired.wait(30)
        return build_(self, model, plan, options)

    monkeypatch.setattr(Crew, "_start", starting)
    monkeypatch.setattr(Worker, "check", checking)
    monkeypatch.setattr(Worker, "build", building)
    return hired


def test_split_and_build_give_the_same_side_by_side(
    exported: OnnxExport, tmp_path: Path, side_by_side: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    hired = all_workers_get_work(monkeypatch)
    found = []
    for count in (1, 2):
        side_by_side(count)
        with recorded_pids(monkeypatch) as pids:
            hired.set() if count == 1 else hired.clear()
            options = split.SplitOptions("tensorrt_rtx", min_region=1, cache=False)
            partition = split.split(exported, tmp_path / f"split_{count}", options=options)
            assert len(pids) == count
            hired.set() if count == 1 else hired.clear()
            wanted = build.EngineOptions(("tensorrt_rtx", "onnxruntime"), use_cache=False)
            engines = build.build(partition, tmp_path / f"build_{count}", options=wanted)
            assert len(pids) == 3 * count
        assert all(gone(pid) for pid in pids)
        regions = [(r.name, r.ops, r.inputs, r.outputs, r.digest, r.profiles, r.scope) for r in partition.regions]
        built = [(e.region, e.file.relative_to(engines.folder), e.fingerprint, e.note) for e in engines.engines]
        found.append((regions, partition.left, partition.ops_total, built, engines.failed))
    assert found[0] == found[1]
    assert len(found[0][0]) >= 4
    assert Reason.REFUSED in {op.reason for op in found[0][1]}


def same_export(left: OnnxExport, right: OnnxExport) -> bool:
    def told(exported: OnnxExport) -> list[object]:
        return [
            (r.name, r.ops, r.inputs, r.outputs, r.digest, r.model.relative_to(exported.folder))
            for r in exported.candidates
        ]

    files = [sorted(str(f.relative_to(e.folder)) for f in e.folder.rglob("*")) for e in (left, right)]
    return told(left) == told(right) and left.left == right.left and files[0] == files[1]


class Watched:
    """Exports in children, of which the first answers before this process begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, crash: bool = False) -> None:
        self.asked = 0
        self.answered = threading.Event()
        ask, attempt = exporters._Round._ask, Candidates._attempt

        def watched_ask(round_: exporters._Round, child: ChildProcess, n: int) -> None:
            self.asked += 1
            if crash and self.asked == 1:
                os.kill(child.pid or 0, signal.SIGKILL)
            ask(round_, child, n)
            self.answered.set()

        def patient_attempt(candidates: Candidates, boundary: Cut) -> Attempt:
            assert self.answered.wait(60)
            return attempt(candidates, boundary)

        monkeypatch.setattr(exporters._Round, "_ask", watched_ask)
        monkeypatch.setattr(Candidates, "_attempt", patient_attempt)


@pytest.mark.parametrize("crash", [False, True], ids=["well", "crashing"])
def test_export_gives_the_same_in_children(
    frozen: FrozenGraph,
    exported: OnnxExport,
    tmp_path: Path,
    side_by_side: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    *,
    crash: bool,
) -> None:
    side_by_side(2)
    watched = Watched(monkeypatch, crash=crash)
    with recorded_pids(monkeypatch) as pids:
        again = export.export(frozen, tmp_path / "again", min_region=1)
    assert watched.asked
    assert pids
    assert all(gone(pid) for pid in pids)
    assert same_export(exported, again)


def test_an_exception_while_children_export_leaves_none(
    frozen: FrozenGraph, tmp_path: Path, side_by_side: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    side_by_side(2)
    started = threading.Event()
    start = ChildProcess.start

    def starting(child: ChildProcess, what: str, limit_mib: Callable[[], float | None]) -> bytes:
        started.set()
        return start(child, what, limit_mib)

    def interrupted(candidates: Candidates, boundary: Cut) -> Attempt:
        assert started.wait(20)
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Candidates, "_attempt", interrupted)
    with recorded_pids(monkeypatch) as pids:
        monkeypatch.setattr(ChildProcess, "start", starting)
        with pytest.raises(KeyboardInterrupt):
            export.export(frozen, tmp_path / "out", min_region=1)
    assert all(gone(pid) for pid in pids)
    assert not list(tmp_path.iterdir())


def test_a_user_s_script_without_a_guard_is_not_run_again(frozen: FrozenGraph, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
print("script runs", flush=True)
from stages import export, exporters, storage
from stages.artifacts import FrozenGraph
from stages.candidates import Candidates
import threading
exporters.WORTH_OPS = 0
exporters.side_by_side = lambda tasks: min(tasks, 2)
answered, ask, attempt = threading.Event(), exporters._Round._ask, Candidates._attempt
def watched(*arguments):
    ask(*arguments)
    answered.set()
def patient(*arguments):
    assert answered.wait(60)
    return attempt(*arguments)
exporters._Round._ask, Candidates._attempt = watched, patient
export.export(storage.load(FrozenGraph, Path({str(frozen.folder)!r})), Path({str(tmp_path / "out")!r}), min_region=1)
print("asked a child:", answered.is_set())
""")
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["script runs", "asked a child: True"]
