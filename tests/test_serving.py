"""Stitched models behind servers: the very service of docs/serving.md, a process with the op alone, forked workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from fixtures import vision
from pipeline import Config, convert
from stages.engine_op.compile import compiled_library
from tests.conftest import relative_error
from tests.test_architecture import ROOT

START_SECONDS = 120
BATCHES = (1, 2, 3, 5, 8)


@dataclass(frozen=True)
class Service:
    """The service of the page, running. `folder` holds `serve.py` and `model/`."""

    address: str
    folder: Path


def code_of_the_page() -> str:
    page = (ROOT / "docs/serving.md").read_text()
    (code,) = re.findall(r"^<!-- runnable: as serve.py -->\n```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return str(code)


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "MODEL": str(folder / "model/saved_model")}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "serve.py").write_text(code_of_the_page())
    convert(vision.small_cnn(), folder / "model", Config(backend="onnxruntime"))
    command = [sys.executable, "-m", "uvicorn", "serve:app", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True) as server:
        watchdog = threading.Timer(START_SECONDS, server.kill)
        watchdog.start()
        lines: list[str] = []
        assert server.stderr is not None
        try:
            for line in server.stderr:
                lines.append(line)
                if address := re.search(r"running on (http://\S+)", line):
                    break
            else:
                pytest.fail("the service does not start:\n" + "".join(lines))
            watchdog.cancel()
            threading.Thread(target=server.stderr.read, daemon=True).start()  # so that its log never blocks it
            yield Service(address[1], folder)
        finally:
            watchdog.cancel()
            server.terminate()
    assert server.returncode in (0, -15)


def calls(service: Service) -> int:
    stats = httpx.get(f"{service.address}/stats").json()
    assert not any(region["fallbacks"] for region in stats.values())
    return sum(region["engine_calls"] for region in stats.values())


@pytest.mark.slow
def test_concurrent_requests_of_mixed_sizes_get_tensorflows_answers_from_engines(service: Service) -> None:
    model = vision.small_cnn()
    requests = [vision.small_cnn_inputs(BATCHES[seed % len(BATCHES)], seed)["image"] for seed in range(40)]
    before = calls(service)
    barrier = threading.Barrier(8)

    def ask(share: int) -> list[tuple[int, np.ndarray]]:
        answers = []
        with httpx.Client(base_url=service.address, timeout=60) as client:
            barrier.wait()
            for number in range(share, len(requests), 8):
                reply = client.post("/predict", json={"inputs": {"image": requests[number].tolist()}})
                assert reply.status_code == 200, reply.text
                ((_, values),) = reply.json()["outputs"].items()
                answers.append((number, np.asarray(values, np.float32)))
        return answers

    with ThreadPoolExecutor(8) as threads:
        answers = dict(pair for answered in threads.map(ask, range(8)) for pair in answered)
    assert sorted(answers) == list(range(len(requests)))
    for number, answer in answers.items():
        expected = model(requests[number]).numpy()
        assert answer.shape == expected.shape
        assert relative_error(expected, answer) < 1e-5
    assert calls(service) - before == len(requests)


@pytest.mark.slow
def test_a_wrong_request_is_refused_and_the_service_lives_on(service: Service) -> None:
    wrong: list[object] = [
        {},
        {"inputs": {"picture": []}},
        {"inputs": {"image": [[1, 2], [3]]}},
        {"inputs": {"image": [1]}},
    ]
    assert [httpx.post(f"{service.address}/predict", json=body).status_code for body in wrong] == [400] * len(wrong)
    assert httpx.post(f"{service.address}/predict", content=b"no json").status_code == 422
    good = {"inputs": {"image": vision.small_cnn_inputs(2)["image"].tolist()}}
    assert httpx.post(f"{service.address}/predict", json=good).status_code == 200


@pytest.mark.slow
def test_importing_the_service_loads_no_tensorflow_so_that_forked_workers_can(service: Service) -> None:
    program = """
        import os, sys
        import serve
        assert "tensorflow" not in sys.modules
        child = os.fork()
        if child == 0:
            import numpy as np
            model = serve.Model(os.environ["MODEL"])
            model({"image": np.zeros((2, 16, 16, 3))})
            ((_, region),) = model.engine_op.stats().items()
            sys.exit(0 if region == {"engine_calls": 1, "fallbacks": {}} else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run(service.folder, program) == "0"


@pytest.mark.slow
def test_a_process_that_knows_the_op_but_not_its_runtime_runs_tensorflows_ops_and_counts_them(service: Service) -> None:
    """What a server in C++ with the op linked in has: the library, and nothing of GraftRT's Python."""
    program = """
        import ctypes, json, sys
        import numpy as np
        import tensorflow as tf
        library = ctypes.CDLL(sys.argv[1])
        tf.load_op_library(sys.argv[1])
        library.GraftStats.restype = ctypes.c_char_p
        function = tf.saved_model.load(sys.argv[2]).signatures["serving_default"]
        image = np.load(sys.argv[3])
        ((_, answer),) = function(image=image).items()
        assert not any(name.split(".")[0] == "stages" for name in sys.modules)
        print(json.dumps([answer.numpy().tolist(), json.loads(library.GraftStats())]))
    """
    image = vision.small_cnn_inputs(3)["image"]
    np.save(service.folder / "image.npy", image)
    files = (compiled_library(), service.folder / "model/saved_model", service.folder / "image.npy")
    answer, stats = json.loads(run(service.folder, program, *map(str, files)))
    assert stats == {"region_0": {"engine_calls": 0, "fallbacks": {"no runtime": 1}}}
    assert relative_error(vision.small_cnn()(image).numpy(), np.asarray(answer)) < 1e-5


def run(folder: Path, program: str, *arguments: str) -> str:
    """Run a program in a process of its own; returns what it printed."""
    lines = program.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    text = "\n".join(line[indent:] for line in lines)
    command = [sys.executable, "-c", text, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]
