"""ResNet50 and others on a GPU: plain TensorFlow, TensorFlow with XLA, ONNX Runtime, the raw engine, the stitched model.

Each peer runs in a process of its own, warm, on an input that lies on the GPU. `pipelined` is the time a batch takes when
calls follow one another without waiting, `synchronous` when each result is fetched; medians, in milliseconds. The raw
engine is the stitched model's own plan, called outside TensorFlow as a CUDA graph over fixed buffers: the fastest that
it can run.

    python -m benchmarks.gpu [--models ResNet50,…] [--batches 1,8,32,128] [--out file]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import record

if TYPE_CHECKING:
    import tensorflow as tf

BATCHES = (1, 8, 32, 128)
PEERS = (
    "stitched fp16",
    "raw fp16",
    "tensorflow",
    "xla tf32",
    "xla fp16",
    "tensorflow fp16",
    "stitched tf32",
    "raw tf32",
    "onnxruntime fp32",
)
ROUNDS = 7
PEER_SECONDS = 600
SECONDS = 0.25
"""Least length of a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="ResNet50")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--name", default="gpu")
    parser.add_argument("--peer")
    parser.add_argument("--model")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    batches = [int(batch) for batch in options.batches.split(",")]
    if options.peer:
        print(json.dumps(measure(options.peer, options.model, batches, options.folder)))
        return
    figures: dict[str, object] = {"gpu": gpu_name(), "rounds": ROUNDS}
    for model in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows: dict[str, object] = {}
            for peer in options.peers.split(","):
                rows[peer] = _in_process(peer, model, options.batches, folder)
                figures[model] = rows
                record.write(options.name, figures)


def _in_process(peer: str, model: str, batches: str, folder: str) -> object:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--peer",
        peer,
        "--model",
        model,
        "--batches",
        batches,
        "--folder",
        folder,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PEER_SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"did not end within {PEER_SECONDS} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(peer: str, model: str, batches: list[int], folder: Path) -> dict[str, object]:
    """Median milliseconds a batch of one peer, by batch size."""
    kind, _, precision = peer.partition(" ")
    if kind in ("stitched", "raw"):
        converted(model, precision, batches, folder)
    if kind == "raw":
        from benchmarks.raw_engine import RawEngine

        engine = RawEngine(next((folder / f"{model}-{precision}").glob("regions/*/tensorrt*.plan")))
        return {str(batch): timed(*engine.at(batch)) for batch in batches}
    if kind == "onnxruntime":
        return _onnxruntime(model, batches, folder)
    return _tensorflow(kind, precision, model, batches, folder)


def converted(model: str, precision: str, batches: list[int], folder: Path) -> Path:
    """The stitched model, converted in a process of its own so that the peer's stays clean."""
    out = folder / f"{model}-{precision}"
    if not out.exists():
        program = (
            "import sys; from benchmarks.gpu import convert_for; "
            "convert_for(sys.argv[1], sys.argv[2], [int(b) for b in sys.argv[3].split(',')], sys.argv[4])"
        )
        command = [sys.executable, "-c", program, model, precision, ",".join(map(str, batches)), str(out)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return out


def convert_for(model: str, precision: str, batches: list[int], out: str) -> None:
    from pipeline import Config, convert
    from stages.artifacts import ShapeRange
    from stages.sources import open_model

    opened = open_model(f"keras:{model}")
    name = opened.input_names[0]
    size = opened.owner.input_shape[1:]  # type: ignore[attr-defined]
    shape = ShapeRange(name, (min(batches), *size), (sorted(batches)[len(batches) // 2], *size), (max(batches), *size))
    convert(opened.owner, out, Config(precision=precision, shapes=(shape,), max_error=0.05, cache=False))


def _tensorflow(kind: str, precision: str, name: str, batches: list[int], folder: Path) -> dict[str, object]:
    """The stitched model, or the original in TensorFlow with or without XLA."""
    import tensorflow as tf

    if kind == "stitched":
        from stages import engine_op

        function = tf.saved_model.load(str(folder / f"{name}-{precision}/saved_model")).signatures["serving_default"]
        ((keyword, spec),) = function.structured_input_signature[1].items()
        results: dict[str, object] = {
            str(batch): _timed_in_tensorflow(
                lambda image: next(iter(function(**{keyword: image}).values())), batch, spec.shape[1:]
            )
            for batch in batches
        }
        results["stats"] = engine_op.stats()
        concrete = tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec((1, 1000)))
        results["trivial concrete function"] = _timed_in_tensorflow(concrete, 1, (1000,))
        return results
    if precision == "fp16":
        tf.keras.mixed_precision.set_global_policy("mixed_float16")
    tf.keras.utils.set_random_seed(0)
    model = getattr(tf.keras.applications, name)(weights=None)
    size = model.input_shape[1:]
    traced = tf.function(lambda image: model(image, training=False), jit_compile=kind == "xla")
    return {
        str(batch): _timed_in_tensorflow(traced.get_concrete_function(tf.TensorSpec((batch, *size))), batch, size)
        for batch in batches
    }


def _timed_in_tensorflow(call: Callable[[tf.Tensor], tf.Tensor], batch: int, size: Sequence[int]) -> dict[str, float]:
    import tensorflow as tf

    with tf.device("GPU:0"):
        image = tf.constant(np.random.default_rng(0).random((batch, *size), np.float32))
    last: list[tf.Tensor] = []

    def enqueue() -> None:
        last[:] = [call(image)]

    def fetch() -> object:
        return last[0].numpy()

    return timed(enqueue, fetch)


def _onnxruntime(name: str, batches: list[int], folder: Path) -> dict[str, object]:
    import onnxruntime as ort

    model = next((folder / f"{name}-fp16").glob("regions/*/model.onnx"), None)
    if model is None or "CUDAExecutionProvider" not in ort.get_available_providers():
        return {"failed": "ONNX Runtime's CUDA build is not installed"}
    session = ort.InferenceSession(str(model), providers=["CUDAExecutionProvider"])
    results: dict[str, object] = {}
    for batch in batches:
        size = [axis if isinstance(axis, int) else batch for axis in session.get_inputs()[0].shape]
        image = ort.OrtValue.ortvalue_from_numpy(np.random.default_rng(0).random(size, np.float32), "cuda", 0)
        binding = session.io_binding()
        binding.bind_ortvalue_input("input_0", image)
        binding.bind_output("output_0", "cuda")
        results[str(batch)] = timed(
            lambda b=binding: session.run_with_iobinding(b), lambda b=binding: b.get_outputs()[0].numpy()
        )
    return results


def timed(enqueue: Callable[[], object], fetch: Callable[[], object]) -> dict[str, float]:
    """Milliseconds: medians and the 99th percentile."""
    start = time.perf_counter()
    enqueue()
    fetch()
    first = time.perf_counter() - start
    for _ in range(10):
        enqueue()
    fetch()
    start = time.perf_counter()
    for _ in range(5):
        enqueue()
    fetch()
    count = max(10, int(SECONDS / ((time.perf_counter() - start) / 5)))
    pipelined = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            enqueue()
        fetch()
        pipelined.append((time.perf_counter() - start) / count)
    synchronous = []
    for _ in range(min(3 * count, 300)):
        start = time.perf_counter()
        enqueue()
        fetch()
        synchronous.append(time.perf_counter() - start)
    synchronous.sort()
    return {
        "first": round(1000 * first, 3),
        "pipelined": round(1000 * statistics.median(pipelined), 4),
        "synchronous": round(1000 * statistics.median(synchronous), 4),
        "synchronous_p99": round(1000 * synchronous[int(0.99 * (len(synchronous) - 1))], 4),
    }


def gpu_name() -> str:
    from stages.engine_op.cuda import Cuda

    return Cuda(0).name()


if __name__ == "__main__":
    main()
