"""Conversion time against the number of computing ops: chains of small layers, once with nothing refused and once with an op
that must stay in TensorFlow after every 500 ops; and the same conversion again, with the engine cache filled.

Each size runs in a process of its own; TensorFlow's import and making the model don't count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import record

if TYPE_CHECKING:
    import tensorflow as tf

SIZES = (1_000, 3_000, 10_000)
WIDTH = 16
OPS_A_LAYER = 5
APART = 500


def chain(ops: int, apart: int | None) -> tf.types.experimental.ConcreteFunction:
    """About `ops` computing ops one after the other, float32 (batch, 16); a Bessel function, which nobody
    translates, after every `apart` of them."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    weights = [tf.constant(rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 4) for _ in range(10)]

    @tf.function(input_signature=[tf.TensorSpec([None, WIDTH], tf.float32, "x")], autograph=False)
    def compute(x: tf.Tensor) -> tf.Tensor:
        for layer in range(ops // OPS_A_LAYER):
            x = tf.tanh(tf.nn.relu(tf.matmul(x, weights[layer % len(weights)])) + x) * 0.7
            if apart and (layer + 1) % (apart // OPS_A_LAYER) == 0:
                x = tf.math.bessel_i0e(x)
        return x

    return compute.get_concrete_function()


def measure(ops: int, apart: int | None) -> dict[str, object]:
    """Convert twice, the second time with the engine cache that the first one filled."""
    from pipeline import Config, convert
    from stages import engine_op

    engine_op.load()
    function = chain(ops, apart)
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for run in ("first", "again"):
            start = time.perf_counter()
            report = convert(function, Path(folder) / run, Config(max_error=1e-3))
            seconds.append(round(time.perf_counter() - start, 1))
    return {
        "ops": report.ops_total,
        "ops_in_engines": report.ops_in_engines,
        "regions": len(report.regions),
        "seconds": seconds[0],
        "seconds_with_cached_engines": seconds[1],
        "stages_seconds_with_cached_engines": {stage.name: round(stage.seconds, 1) for stage in report.stages},
    }


def main(arguments: Iterable[str] = ()) -> None:
    wanted = list(arguments)
    if wanted:
        print(json.dumps(measure(int(wanted[0]), int(wanted[1]) or None)))
        return
    rows: dict[str, list[object]] = {"nothing_refused": [], "refused_every_500": []}
    for name, apart in (("nothing_refused", 0), ("refused_every_500", APART)):
        for ops in SIZES:
            with tempfile.TemporaryDirectory() as cache:
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.scaling", str(ops), str(apart)],
                    env={**os.environ, "GRAFTRT_CACHE_DIR": cache},
                    stdout=subprocess.PIPE,
                    check=True,
                )
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    record.write("scaling", dict(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
