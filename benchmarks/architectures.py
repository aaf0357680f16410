"""Five architectures of keras.applications at their default sizes: regions, ops in engines, plan, error, seconds."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks import record
from pipeline import Config, convert

NAMES = ("ResNet50", "MobileNetV2", "EfficientNetB0", "DenseNet121", "InceptionV3")


def main() -> None:
    figures: dict[str, object] = {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            report = convert(f"keras:{name}", Path(folder) / "out", Config(cache=False))
            seconds = time.perf_counter() - start
        engines = {engine.backend: engine for region in report.regions for engine in region.engines}
        figures[name] = {
            "regions": len(report.regions),
            "ops_in_engines": report.ops_in_engines,
            "ops_total": report.ops_total,
            "plans": {
                backend: {"megabytes": round(engine.bytes / 1e6, 1), "build_seconds": round(engine.build_seconds, 2)}
                for backend, engine in engines.items()
            },
            "max_rel_error": max(output.max_rel_error for output in report.verification.outputs),
            "convert_seconds": round(seconds, 1),
        }
    record.write("architectures", figures)


if __name__ == "__main__":
    main()
