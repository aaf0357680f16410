"""The worker: whatever happens to the child process, the parent gets an answer and goes on."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.backends import isolated
from stages.backends.base import LIBRARIES, BuildOptions
from stages.backends.isolated import Worker
from stages.errors import BackendError
from stages.memory import available_mib
from tests import onnx_models as tiny

ROOT = Path(__file__).parent.parent
CRASHER = Path(__file__).parent / "data" / "parser-segfault.onnx"
LONG = BuildOptions(profiles=(tiny.conv_profile(1, 4, 8), tiny.conv_profile(9, 16, 32)))


@pytest.fixture
def worker() -> Iterator[Worker]:
    pytest.importorskip("tensorrt_rtx")
    with Worker("tensorrt_rtx") as worker:
        yield worker


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.save(tiny.conv(), tmp_path / "model" / "m.onnx")


@pytest.fixture
def long_model(tmp_path: Path) -> Path:
    """Takes about a second to build."""
    return tiny.save(tiny.conv(layers=40), tmp_path / "model" / "long.onnx")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_answers_are_the_back_end_s_own(worker: Worker, model: Path, tmp_path: Path) -> None:
    assert worker.check(model).accepted
    refused = worker.check(tiny.save(tiny.unknown_op(), tmp_path / "refused.onnx"))
    assert [(refusal.node, refusal.op_type) for refusal in refused.refusals] == [("mine", "MyOp")]
    outcome = worker.build(model, tmp_path / "plan", LONG)
    assert outcome.built, outcome.failure
    assert (tmp_path / "plan").stat().st_size > 1000
    assert worker.version == worker.backend.version()


def test_one_child_serves_all_requests(worker: Worker, model: Path) -> None:
    first = worker.pid
    assert worker.check(model).accepted
    assert worker.check(model).accepted
    assert worker.pid == first


def test_the_child_does_not_load_tensorflow(worker: Worker, model: Path) -> None:
    assert worker.check(model).accepted
    assert "tensorflow" not in Path(f"/proc/{worker.pid}/maps").read_text()


def test_a_parser_crash_is_an_answer_and_the_next_request_is_served(worker: Worker, model: Path) -> None:
    support = worker.check(CRASHER)
    # Some versions crash here, others take or refuse the model; the parent lives in any case.
    assert support.accepted or support.refusals or support.failure
    if worker.version.startswith(("1.5.", "1.7.")):
        assert "the parser crashed (signal 11" in support.failure
    assert worker.check(model).accepted


def test_a_build_whose_child_is_killed_fails_without_a_plan(worker: Worker, long_model: Path, tmp_path: Path) -> None:
    pid = worker.pid
    assert pid is not None
    timer = threading.Timer(0.15, os.kill, (pid, signal.SIGKILL))
    timer.start()
    outcome = worker.build(long_model, tmp_path / "plan", LONG)
    timer.join()
    assert not outcome.built
    assert "killed (signal 9)" in outcome.failure
    assert not list(tmp_path.glob("*plan*"))
    assert gone(pid)
    assert worker.build(long_model, tmp_path / "plan", LONG).built


def test_a_child_killed_between_requests_is_started_again(worker: Worker, model: Path) -> None:
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert worker.check(model).accepted


def test_a_build_beyond_the_time_limit_is_ended(long_model: Path, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    with Worker("tensorrt_rtx", time_limit_seconds=0.05) as worker:
        pid = worker.pid
        assert pid is not None
        start = time.monotonic()
        outcome = worker.build(long_model, tmp_path / "plan", LONG)
        assert time.monotonic() - start < 2
        assert outcome.failure == "the builder did not end within 0.05 s"
        assert gone(pid)
        assert not list(tmp_path.glob("*plan*"))
        worker.time_limit_seconds = 60
        assert worker.check(model).accepted


def test_a_child_beyond_the_memory_limit_is_ended(model: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    worker = Worker("tensorrt_rtx")
    try:
        assert worker.check(model).accepted
        worker.memory_limit_mib = 20
        assert "more than 20 MiB of memory" in worker.check(model).failure
        worker.memory_limit_mib = 8192
        assert worker.check(model).accepted
    finally:
        worker.close()


def test_no_child_and_no_zombie_is_left_behind(model: Path) -> None:
    with Worker("onnxruntime") as worker:
        assert worker.check(model).accepted
        pid = worker.pid
        assert pid is not None
    assert gone(pid)
    assert worker.pid is None


def test_threads_share_a_worker(worker: Worker, model: Path, tmp_path: Path) -> None:
    refused = tiny.save(tiny.unknown_op(), tmp_path / "refused.onnx")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(worker.check, [model, refused] * 10))
    assert [answer.accepted for answer in answers] == [True, False] * 10


def test_two_workers_run_side_by_side(worker: Worker, model: Path) -> None:
    with Worker("onnxruntime") as other:
        assert other.pid != worker.pid
        assert other.check(model).accepted
        assert worker.check(model).accepted


def test_what_the_library_prints_does_not_reach_the_protocol(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        worker.check(CRASHER)
    assert capfd.readouterr() == ("", "")


def test_relative_paths_are_the_parent_s(
    worker: Worker, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert worker.build(model.relative_to(tmp_path), Path("plan"), LONG).built
    assert (tmp_path / "plan").exists()


def test_a_missing_library_is_said_by_the_parent() -> None:
    if any(map(importlib.util.find_spec, LIBRARIES["tensorrt"].modules)):
        pytest.skip("TensorRT is installed")
    with pytest.raises(BackendError, match=r"not installed[\s\S]*graftrt\[tensorrt\]"), Worker("tensorrt"):
        pass


def test_an_unknown_back_end_has_no_worker() -> None:
    with pytest.raises(BackendError, match="is no back end"):
        Worker("openvino")


def test_ctrl_c_ends_the_child_too(long_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    program = f"""
from pathlib import Path
from stages.backends.base import BuildOptions
from stages.backends import isolated
from stages.backends.isolated import Worker
from stages.memory import available_mib
from tests import onnx_models as tiny
with Worker("tensorrt_rtx") as worker:
    print(worker.pid, flush=True)
    options = BuildOptions(profiles=(tiny.conv_profile(1, 4, 8), tiny.conv_profile(9, 16, 32)))
    while True:
        worker.build(Path({str(long_model)!r}), Path({str(tmp_path / "plan")!r}), options)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.send_signal(signal.SIGINT)
    _, stderr = parent.communicate(timeout=30)
    assert stderr.strip().endswith("KeyboardInterrupt")
    assert gone(child)
    assert not list(tmp_path.glob(".*partial"))


def test_a_child_follows_a_parent_that_was_killed() -> None:
    program = """
from stages.backends import isolated
from stages.backends.isolated import Worker
from stages.memory import available_mib
with Worker("onnxruntime") as worker:
    print(worker.pid, flush=True)
    input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while not _ended(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _ended(pid: int) -> bool:
    """Nobody may reap an orphan in a container: a zombie has ended."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def test_without_a_limit_a_child_may_take_most_of_what_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "available_mib", lambda: 20.0)
    with pytest.raises(BackendError, match="took more than 18 MiB of memory"), Worker("onnxruntime"):
        pass


def test_available_memory_is_the_container_s_where_that_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  4096000 kB\nMemAvailable:    2048000 kB\n")
    assert available_mib(meminfo, tmp_path) == 2000
    (tmp_path / "memory.max").write_text(f"{1000 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{400 << 20}\n")
    assert available_mib(meminfo, tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert available_mib(meminfo, tmp_path) == 2000
    assert available_mib(tmp_path / "none", tmp_path) is None
    assert (available_mib() or 0) > 0
