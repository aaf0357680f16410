"""A model with more than 2 GiB of weights, one table alone too: peak memory and seconds of every stage.

Each stage runs as the command line's, in a process of its own, and the memory of that process and its children is
sampled. Building the model is not measured. The engine cache starts empty. Takes about 12 times the weights of disk.

TF_ONEDNN_USE_SYSTEM_ALLOCATOR=1 is set, as the command line does by itself: without, TensorFlow gives no memory back. The
SavedModel is what Keras's `export` writes, which holds each weight twice; so does what TensorFlow loads of it.

    python -m benchmarks.large_model            # 2.5 GB
    python -m benchmarks.large_model 30000      # rows of the table, for a smaller one; nothing is recorded
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks import record
from benchmarks.memory import Measured, Usage, run_measured

ROWS = 270_000
WIDE = 8192
LAYERS = 2
PROGRAM = """
import sys
import numpy as np
from fixtures.large import recommender
model = recommender(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
if sys.argv[5] == "convert":
    from pipeline import Config, convert
    report = convert(model, sys.argv[4])
    assert report.ops_in_engines == report.ops_total, report.summary()
else:
    (model.save if sys.argv[5] == "save" else model.export)(sys.argv[4])
"""
SERVE = """
import sys
import numpy as np
import tensorflow as tf
import stages.engine_op
from fixtures.large import recommender_inputs
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
out = serve(**{name: tf.constant(value) for name, value in recommender_inputs(int(sys.argv[2])).items()})
assert all(np.isfinite(value.numpy()).all() for value in out.values())
stats = stages.engine_op.stats()
assert all(s["engine_calls"] and not s["fallbacks"] for s in stats.values()), stats
print(stats)
"""


def measure(folder: Path, rows: int, wide: int = WIDE, layers: int = LAYERS) -> dict[str, Usage]:
    """Peaks by stage, for a model that is made in `folder`; nothing is left of it.

    Raises:
        RuntimeError: a stage failed; the message is what it said.
    """
    environment = {**os.environ, "GRAFTRT_CACHE_DIR": str(folder / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1"}
    size = (str(rows), str(wide), str(layers))

    def run(*arguments: str) -> Usage:
        done: Measured = run_measured([sys.executable, *arguments], env=environment)
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments[-4:])}: exit code {done.returncode}: {done.output[-2000:]}")
        print(f"{' '.join(arguments[-3:])}: {done.usage}", file=sys.stderr)
        return done.usage

    def path(name: str) -> str:
        return str(folder / name)

    def remove(*names: str) -> None:
        for name in names:
            shutil.rmtree(folder / name, ignore_errors=True)

    run("-c", "import stages.engine_op")
    usages: dict[str, Usage] = {}
    run("-c", PROGRAM, *size, path("model.keras"), "save")
    usages["freeze of a .keras file"] = run("-m", "pipeline", "freeze", path("model.keras"), path("0"))
    (folder / "model.keras").unlink()
    remove("0")
    run("-c", PROGRAM, *size, path("model"), "export")
    previous = "model"
    for stage in ("freeze", "export", "split", "build", "stitch"):
        usages[stage] = run("-m", "pipeline", stage, path(previous), path(stage))
        previous = stage
    usages["load and run"] = run("-c", SERVE, path("stitch/saved_model"), str(rows))
    remove("freeze", "export", "split", "build", "stitch", "cache/engines")
    usages["convert, all in one process"] = run("-m", "pipeline", "convert", path("model"), path("out"))
    remove("model", "out", "cache/engines")
    usages["convert of a live Keras model"] = run("-c", PROGRAM, *size, path("out"), "convert")
    remove("out")
    return usages


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    weights = (rows + 2 * LAYERS * WIDE) * 2048 * 4
    with tempfile.TemporaryDirectory() as folder:
        usages = measure(Path(folder), rows)
    figures: dict[str, object] = {
        "weights_bytes": weights,
        "largest_tensor_bytes": rows * 2048 * 4,
        "stages": {
            name: {
                "seconds": round(usage.seconds, 1),
                "rss_over_weights": round(usage.rss / weights, 2),
                "pss_over_weights": round(usage.pss / weights, 2),
                "anonymous_over_weights": round(usage.anonymous / weights, 2),
            }
            for name, usage in usages.items()
        },
    }
    if rows == ROWS:
        record.write("large_model", figures)
    else:
        print(figures)


if __name__ == "__main__":
    main()
