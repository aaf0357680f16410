"""ResNet50: GraftRT's whole conversion, and its export alone, against stock tf2onnx's export, in one process.

Every run starts from a live Keras model; neither side counts building the model or importing TensorFlow. GraftRT's
engine cache is off: a real TensorRT plan is built each time.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import record
from pipeline import Config, convert
from stages.export import export
from stages.freeze import freeze

RUNS = 3


def main() -> None:
    import keras
    import tensorflow as tf
    import tf2onnx

    from stages import engine_op

    engine_op.load()
    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None)
    specs = [tf.TensorSpec((None, 224, 224, 3), tf.float32, name="image")]
    function = tf.function(lambda image: model(image, training=False), input_signature=specs)
    times: dict[str, list[float]] = {"stock_export": [], "export": [], "convert": []}
    stages: dict[str, list[float]] = {}
    for _ in range(RUNS):
        start = time.perf_counter()
        tf2onnx.convert.from_function(function, input_signature=specs, opset=17)
        times["stock_export"].append(time.perf_counter() - start)
        with tempfile.TemporaryDirectory() as folder:
            frozen = freeze(model, Path(folder) / "freeze")
            start = time.perf_counter()
            export(frozen, Path(folder) / "export")
            times["export"].append(time.perf_counter() - start)
            start = time.perf_counter()
            report = convert(model, Path(folder) / "out", Config(cache=False))
            times["convert"].append(time.perf_counter() - start)
        for stage in report.stages:
            stages.setdefault(stage.name, []).append(stage.seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    record.write(
        "conversion",
        {
            **{f"{name}_seconds": round(value, 2) for name, value in medians.items()},
            "export_over_stock": round(medians["export"] / medians["stock_export"], 3),
            "convert_over_stock_export": round(medians["convert"] / medians["stock_export"], 3),
            "convert_stages_seconds": {name: round(statistics.median(s), 2) for name, s in stages.items()},
            "runs": RUNS,
        },
    )


if __name__ == "__main__":
    main()
