"""What EngineCall adds to ONNX Runtime: ResNet50 at batch 8 on the CPU, the op in a tf.function against a session called
directly, the two in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import record
from pipeline import Config, convert

RUNS = 30
BATCH = 8


def main() -> None:
    import onnxruntime as ort
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        convert("keras:ResNet50", out, Config(backend="onnxruntime"))
        function = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
        (keyword,) = function.structured_input_signature[1]
        session = ort.InferenceSession(
            str(out / "regions/region_0/onnxruntime.onnx"), providers=["CPUExecutionProvider"]
        )
        image = np.random.default_rng(0).random((BATCH, 224, 224, 3), np.float32)
        tensor = tf.constant(image)
        direct, through = [], []
        for run in range(RUNS + 3):
            start = time.perf_counter()
            session.run(None, {"input_0": image})
            middle = time.perf_counter()
            function(**{keyword: tensor})
            end = time.perf_counter()
            if run >= 3:
                direct.append(middle - start)
                through.append(end - middle)
    ratios = sorted(b / a for a, b in zip(direct, through, strict=True))
    record.write(
        "op_overhead",
        {
            "session_milliseconds": round(1000 * statistics.median(direct), 1),
            "op_milliseconds": round(1000 * statistics.median(through), 1),
            "ratio_of_medians": round(statistics.median(through) / statistics.median(direct), 4),
            "median_of_paired_ratios": round(statistics.median(ratios), 4),
            "runs": RUNS,
            "batch": BATCH,
        },
    )


if __name__ == "__main__":
    main()
