"""What int8 and fp8 cost two models with trained weights, by calibration method, on photographs that were not calibrated on.

ONNX Runtime on the CPU runs each region's model in float32 and quantised. `python -m benchmarks.calibration`
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage.data
from skimage import transform

from benchmarks import record
from pipeline.config import Config
from pipeline.run import freeze_model
from stages import onnx_files
from stages.execute import Session
from stages.export import export
from stages.precision import convert
from stages.precision.calibration import Calibrator
from stages.precision.fp8 import with_casts
from stages.precision.histogram import METHODS

MODELS = ("pretrained:mobilenet-pb", "pretrained:fer")
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
CALIBRATED_ON, COMPARED_ON = 32, 40

Image = npt.NDArray[np.float32]


def main() -> None:
    record.write("calibration", {name: _figures(name) for name in MODELS})


def crops(size: int, channels: int) -> Iterator[Image]:
    """Square parts of photographs at random, as (1, size, size, channels), -1 to 1; seeded."""
    random = np.random.RandomState(0)
    photographs = [getattr(skimage.data, name)() for name in PHOTOGRAPHS]
    while True:
        image = photographs[random.randint(len(photographs))]
        shortest = min(image.shape[:2])
        side = random.randint(shortest // 2, shortest)
        top, left = (random.randint(length - side + 1) for length in image.shape[:2])
        part = transform.resize(image[top : top + side, left : left + side], (size, size), preserve_range=True)
        part = part if channels == 3 else part.mean(-1, keepdims=True)
        yield ((part[None] - 128) / 128).astype(np.float32)


def _figures(name: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        frozen, _ = freeze_model(name, work / "frozen", Config())
        (region,) = export(frozen, work / "exported").candidates
        shape = frozen.inputs[0].shape or ()
        stream = crops(int(shape[1] or 0), int(shape[3] or 0))
        calibrated_on = [next(stream) for _ in range(CALIBRATED_ON)]
        compared_on = [next(stream) for _ in range(COMPARED_ON)]
        expected = _outputs(region.model, compared_on)
        figures: dict[str, object] = {}
        for method in METHODS:
            calibrator = Calibrator(region.model, method, scratch=work)
            start = time.perf_counter()
            for image in calibrated_on:
                calibrator.observe({"input_0": image})
            observed = time.perf_counter()
            (ranges,) = calibrator.table().regions.values()
            seconds = {"observing": observed - start, "choosing": time.perf_counter() - observed}
            for precision in ("int8", "fp8") if method == "minmax" else ("int8",):
                model, weights = onnx_files.load_model(region.model)
                quantised = convert(model, precision, weights, ranges=ranges, rest="fp32")
                path = work / f"{precision}_{method}.onnx"
                onnx_files.save_model(with_casts(quantised) if precision == "fp8" else quantised, path, weights)
                figures[f"{precision} {method}"] = _compared(expected, _outputs(path, compared_on)) | {
                    "seconds": {part: round(value, 2) for part, value in seconds.items()}
                }
        return figures


def _outputs(model: Path, images: list[Image]) -> Image:
    session = Session(model)
    return np.concatenate([session.run({"input_0": x})["output_0"].reshape(1, -1) for x in images]).astype(np.float32)


def _compared(expected: Image, actual: Image) -> dict[str, float]:
    gaps = np.abs(expected - actual).max(1) / np.abs(expected).max(1)
    return {
        "same_answer": round(float(np.mean(expected.argmax(1) == actual.argmax(1))), 3),
        "relative_error_median": round(float(np.median(gaps)), 4),
        "relative_error_largest": round(float(gaps.max()), 4),
        "rms_over_rms": round(float(np.linalg.norm(expected - actual) / np.linalg.norm(expected)), 4),
    }


if __name__ == "__main__":
    main()
