"""Models on a GPU: plain TensorFlow, TensorFlow with XLA, ONNX Runtime, the raw engine, the stitched model.

Each peer runs in a process of its own, warm, on an input that lies on the GPU. `pipelined` is the time a batch takes when
calls follow one another without waiting (`enqueue` is the part of it that the calling thread is busy), `synchronous` when
each result is fetched; medians, in milliseconds. The raw
engine is the stitched model's own plan, called outside TensorFlow as a CUDA graph over fixed buffers: the fastest that
it can run.

    python -m benchmarks.gpu [--models ResNet50,…] [--batches 1,8,32,128] [--peers …] [--folder FOLDER]

Models are converted without the GPU, side by side. While one peer is measured the next one's process imports its libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import models, record
from pipeline.timing import percentile

if TYPE_CHECKING:
    import tensorflow as tf

BATCHES = (1, 8, 32, 128)
MODELS = ("ResNet50", models.ENCODER, "MobileNetV2", "EfficientNetB0")
PEERS = (
    "stitched fp16",
    "raw fp16",
    "tensorflow tf32",
    "xla fp16",
    "onnxruntime fp16",
    "stitched tf32",
    "raw tf32",
    "xla tf32",
    "tensorflow fp16",
    "onnxruntime tf32",
)
"""In the order of interest: each is measured on all models before the next."""
LIMIT_MS = 7.0
WITHIN_LIMIT = {
    "stitched fp16": (96, 104, 112, 120, 128, 136, 144),
    "tensorflow tf32": (1, 2, 3, 4, 5, 6, 8, 10, 12),
    "tensorflow fp16": (1, 2, 3, 4, 5, 6, 8, 10, 12),
}
"""Batch sizes tried for the most images a second within `LIMIT_MS` a batch."""
LARGEST = 144
ROUNDS = 5
SECONDS = 0.1
"""Least length of a round."""
SYNCHRONOUS_SECONDS = 0.3
PEER_SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--name", default="gpu")
    parser.add_argument("--seconds", type=float, default=36000, help="peers that would begin later are left out")
    parser.add_argument("--folder", type=Path, help="for the converted models (default: a temporary one)")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--convert", help=argparse.SUPPRESS)
    options = parser.parse_args()
    batches = [int(batch) for batch in options.batches.split(",")]
    if options.convert:
        return _convert(options.convert, options.folder)
    if options.peer:
        return _be_peer(options.peer, options.models, batches, options.folder)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        names, peers = options.models.split(","), options.peers.split(",")
        conversions = convert_all(names, peers, folder)
        figures: dict[str, object] = {"gpu": gpu_name(), "rounds": ROUNDS, "conversions": conversions}
        for name, peer, answer in _measured(names, peers, options.batches, folder, options.seconds):
            rows: dict[str, object] = figures.setdefault(name, {})  # type: ignore[assignment]
            rows[peer] = answer
            record.write(options.name, figures, quietly=True)
            print(f"{name:16}{peer:18}", _brief(answer), flush=True)
    return None


def convert_all(names: list[str], peers: list[str], folder: Path) -> dict[str, float]:
    """Convert what the peers need, side by side, the GPU hidden; seconds by folder name."""
    wanted = sorted({peer.partition(" ")[2] for peer in peers if peer.startswith(("stitched", "raw", "onnxruntime"))})
    started = {}
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for name in names:
        for precision in wanted:
            target = f"{name}-{precision}"
            if not (folder / target).exists():
                command = [sys.executable, "-m", "benchmarks.gpu", "--convert", target, "--folder", str(folder)]
                log = (folder / f"{target}.log").open("w")
                started[target] = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    start = time.perf_counter()
    seconds = {}
    for target, process in started.items():
        process.wait()
        seconds[target] = round(time.perf_counter() - start, 1)
        if process.returncode:
            print(target, (folder / f"{target}.log").read_text()[-1500:], file=sys.stderr)
    return seconds


def _convert(target: str, folder: Path) -> None:
    from pipeline import Config, convert
    from stages.artifacts import ShapeRange

    name, _, precision = target.rpartition("-")
    size = models.example(name, 1).shape[1:]
    model = models.make(name)
    keyword = model.inputs[0].name
    shapes = tuple(
        ShapeRange(keyword, *((batch, *size) for batch in batches)) for batches in ((1, 8, 32), (32, 128, LARGEST))
    )
    # Verified on a machine without a GPU, in the tests; here its time is better spent measuring.
    config = Config(precision=precision, shapes=shapes, backend="tensorrt_rtx,onnxruntime", verify=False, cache=False)
    convert(model, folder / target, config)


def _measured(
    names: list[str], peers: list[str], batches: str, folder: Path, seconds: float
) -> Iterator[tuple[str, str, object]]:
    """Each peer's answer; the processes of the next two are started before, and import their libraries meanwhile."""
    end = time.monotonic() + seconds
    order = [(name, peer) for peer in peers for name in names]
    processes = {}
    for number, (name, peer) in enumerate(order):
        if time.monotonic() > end:
            yield name, peer, {"failed": "not measured: out of time"}
            continue
        for ahead in order[number : number + 3]:
            if ahead not in processes:
                processes[ahead] = _start(*ahead, batches, folder)
        yield name, peer, _answer(processes[name, peer])
    for process in processes.values():
        process.kill()


def _start(name: str, peer: str, batches: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--peer", peer, "--models", name, "--batches", batches]
    command += ["--folder", str(folder)]
    log = (folder / f"{name}-{peer}.log").open("w")
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)


def _answer(process: subprocess.Popen[str]) -> dict[str, object]:
    """What a peer measured until its end, or its time's; a line for each figure."""
    assert process.stdin is not None
    try:
        said, _ = process.communicate("go\n", timeout=PEER_SECONDS)
        end = {} if process.returncode == 0 else {"failed": f"ended with {process.returncode}"}
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        end = {"failed": f"did not end within {PEER_SECONDS} s"}
    answer: dict[str, object] = {}
    for line in said.splitlines():
        if line.startswith("{"):
            answer |= json.loads(line)
    return answer | end


def _be_peer(peer: str, name: str, batches: list[int], folder: Path) -> None:
    kind, _, precision = peer.partition(" ")
    if kind == "onnxruntime":
        import onnxruntime  # noqa: F401
    elif kind != "raw":
        import tensorflow  # noqa: F401
    sys.stdin.readline()
    sizes = WITHIN_LIMIT.get(peer, ()) if name == "ResNet50" else ()
    target = folder / f"{name}-{precision}"
    for key, figures in _PEERS[kind](name, precision, target, batches, sizes):
        print(json.dumps({key: figures}), flush=True)


Figures = Iterator[tuple[str, object]]


def _stitched(name: str, precision: str, target: Path, batches: list[int], sizes: tuple[int, ...]) -> Figures:
    import tensorflow as tf

    from stages import engine_op

    function = tf.saved_model.load(str(target / "saved_model")).signatures["serving_default"]
    ((keyword, _),) = function.structured_input_signature[1].items()

    def call(value: tf.Tensor) -> tf.Tensor:
        return next(iter(function(**{keyword: value}).values()))

    for batch in batches:
        value = _on_gpu(name, batch)
        start = time.perf_counter()
        (latency,) = engine_op.warmup(function, [{keyword: value}])
        ready = time.perf_counter() - start
        figures = _timed_in_tensorflow(call, value)
        yield str(batch), {**figures, "first": round(1000 * latency.first_seconds, 1), "ready": round(1000 * ready, 1)}
    trivial = tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec((1, 1000)))
    with tf.device("GPU:0"):
        yield "trivial concrete function", _timed_in_tensorflow(trivial, tf.zeros((1, 1000)))
    for batch in sizes:
        value = _on_gpu(name, batch)
        engine_op.warmup(function, [{keyword: value}])
        yield f"within {batch}", _synchronous(*_calls(call, value))
    yield "stats", engine_op.stats()


def _tensorflow(name: str, precision: str, target: Path, batches: list[int], sizes: tuple[int, ...]) -> Figures:
    return _keras(name, precision, batches, sizes, compiled=False)


def _xla(name: str, precision: str, target: Path, batches: list[int], sizes: tuple[int, ...]) -> Figures:
    return _keras(name, precision, batches, sizes, compiled=True)


def _keras(name: str, precision: str, batches: list[int], sizes: tuple[int, ...], *, compiled: bool) -> Figures:
    import tensorflow as tf

    if precision == "fp16":
        tf.keras.mixed_precision.set_global_policy("mixed_float16")
    model = models.make(name)
    traced = tf.function(lambda value: model(value, training=False), jit_compile=compiled)
    for batch in batches:
        value = _on_gpu(name, batch)
        yield str(batch), _timed_in_tensorflow(traced.get_concrete_function(tf.TensorSpec.from_tensor(value)), value)
    for batch in sizes:
        value = _on_gpu(name, batch)
        call = traced.get_concrete_function(tf.TensorSpec.from_tensor(value))
        yield f"within {batch}", _synchronous(*_calls(call, value))


def _raw(name: str, precision: str, target: Path, batches: list[int], sizes: tuple[int, ...]) -> Figures:
    from benchmarks.raw_engine import RawEngine

    engine = RawEngine(next(target.glob("regions/*/tensorrt*.plan")))  # the model's only region
    for batch in batches:
        yield str(batch), timed(*engine.at(batch, models.example(name, batch)))


def _onnxruntime(name: str, precision: str, target: Path, batches: list[int], sizes: tuple[int, ...]) -> Figures:
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        yield "failed", "ONNX Runtime's CUDA build is not installed"
        return
    path = next(target.glob("regions/*/onnxruntime.onnx"))
    session = ort.InferenceSession(str(path), providers=["CUDAExecutionProvider"])
    for batch in batches:
        value = ort.OrtValue.ortvalue_from_numpy(models.example(name, batch), "cuda", 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input("input_0", value)
        binding.bind_output("output_0", "cuda")
        enqueue = lambda binding=binding: session.run_with_iobinding(binding)  # noqa: E731
        yield str(batch), timed(enqueue, lambda binding=binding: binding.get_outputs()[0].numpy())


_PEERS: dict[str, Callable[[str, str, Path, list[int], tuple[int, ...]], Figures]] = {
    "stitched": _stitched,
    "raw": _raw,
    "tensorflow": _tensorflow,
    "xla": _xla,
    "onnxruntime": _onnxruntime,
}


def _on_gpu(name: str, batch: int) -> tf.Tensor:
    """int32 stays in host memory, where TensorFlow keeps it."""
    import tensorflow as tf

    with tf.device("GPU:0"):
        return tf.constant(models.example(name, batch))


def _calls(call: Callable[[tf.Tensor], tf.Tensor], value: tf.Tensor) -> tuple[Callable[[], None], Callable[[], object]]:
    last: list[tf.Tensor] = []

    def enqueue() -> None:
        last[:] = [call(value)]

    def fetch() -> object:
        return last[0].numpy()

    return enqueue, fetch


def _timed_in_tensorflow(call: Callable[[tf.Tensor], tf.Tensor], value: tf.Tensor) -> dict[str, float]:
    return timed(*_calls(call, value))


def timed(enqueue: Callable[[], object], fetch: Callable[[], object]) -> dict[str, float]:
    """Milliseconds: medians and the 99th percentile."""
    count = max(10, int(SECONDS / _warm(enqueue, fetch)))
    pipelined, enqueueing = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            enqueue()
        enqueueing.append((time.perf_counter() - start) / count)
        fetch()
        pipelined.append((time.perf_counter() - start) / count)
    return {
        "pipelined": round(1000 * statistics.median(pipelined), 4),
        "enqueue": round(1000 * statistics.median(enqueueing), 4),
        **_synchronous(enqueue, fetch),
    }


def _warm(enqueue: Callable[[], object], fetch: Callable[[], object]) -> float:
    """Call until nothing is new; then the seconds of a call."""
    for count in (1, 10):
        for _ in range(count):
            enqueue()
        fetch()
    start = time.perf_counter()
    for _ in range(5):
        enqueue()
    fetch()
    return (time.perf_counter() - start) / 5


def _synchronous(enqueue: Callable[[], object], fetch: Callable[[], object]) -> dict[str, float]:
    """A call until its result is in host memory: 50 to 500 of them, about a third of a second."""
    count = min(500, max(50, int(SYNCHRONOUS_SECONDS / _warm(enqueue, fetch))))
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        enqueue()
        fetch()
        seconds.append(time.perf_counter() - start)
    return {
        "synchronous": round(1000 * statistics.median(seconds), 4),
        "synchronous_p99": round(1000 * percentile(seconds, 0.99), 4),
    }


def _brief(answer: object) -> str:
    assert isinstance(answer, dict)
    return " ".join(
        f"{key}: {value['pipelined']:.3f}/{value['enqueue']:.3f}/{value['synchronous']:.3f}"
        if isinstance(value, dict) and "pipelined" in value
        else f"{key}: {value}"
        for key, value in answer.items()
    )


def gpu_name() -> str:
    from stages.engine_op.cuda import Cuda

    return Cuda(0).name()


if __name__ == "__main__":
    main()
