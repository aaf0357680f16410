"""Quality in fp16, bf16 and int8 on two models with trained weights: error, top-1 agreement with TensorFlow, engine size.

The answers are those of the stitched model, whose engines ONNX Runtime executes here: in int8 the very Q/DQ model that
TensorRT is given. Calibration and test images come from different photographs, and from different people.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks import record
from fixtures import photographs
from pipeline import Config, Report, convert
from stages import onnx_files
from stages.precision import CalibrationTable
from stages.precision.sensitivity import DEFAULT_ERROR
from stages.precision.sites import multiplications

Batch = npt.NDArray[np.float32]
CALIBRATED_ON, TESTED_ON = 90, 216
LARGEST_ERROR = 1.0
"""Errors are measured here, not judged: MobileNet's are larger than verification lets pass, in fp16 too."""
PRECISIONS = {"fp32": {}, "fp16": {}, "bf16": {}, "int8": {}, "int8, nothing spared": {"int8_error": 1.0}}
"""Settings besides the precision, which is the first word."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and images for it, each a batch of one as the model takes it."""

    name: str
    calibration: Sequence[Batch]
    test: Sequence[Batch]


def subjects(calibrated_on: int = CALIBRATED_ON, tested_on: int = TESTED_ON) -> Iterator[Subject]:
    """MobileNet with photographs, fer with faces."""
    crops = [
        photographs.crops(names, -(-count // len(names)), 224)
        for names, count in ((photographs.CALIBRATION, calibrated_on), (photographs.TEST, tested_on))
    ]
    yield Subject("mobilenet-pb", *([((c - 128) / 128)[None] for c in found] for found in crops))
    faces = [
        photographs.faces(people, -(-count // len(people)), 64)
        for people, count in ((photographs.CALIBRATION_PEOPLE, calibrated_on), (photographs.TEST_PEOPLE, tested_on))
    ]
    yield Subject("fer", *([((c / 255 - 0.5) * 2)[None] for c in found] for found in faces))


def answers(saved_model: Path, images: Sequence[Batch]) -> Batch:
    """What a SavedModel with one input and one output says, a row for each image."""
    import tensorflow as tf

    import stages.engine_op  # noqa: F401 - makes TensorFlow know EngineCall

    function = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    (keyword,) = function.structured_input_signature[1]
    rows = [next(iter(function(**{keyword: tf.constant(image)}).values())).numpy() for image in images]
    return np.concatenate(rows)


def convert_in(
    precision: str, subject: Subject, out: Path, *, backend: str = "auto", int8_error: float = DEFAULT_ERROR
) -> Report:
    """Convert a subject's model, with its images as samples."""
    keyword = {"mobilenet-pb": "input", "fer": "input_1"}[subject.name]
    samples = ({keyword: image} for image in subject.calibration)
    config = Config(
        precision=precision, backend=backend, samples=samples, max_error=LARGEST_ERROR, int8_error=int8_error
    )
    return convert(f"pretrained:{subject.name}", out, config)


def quality(expected: Batch, actual: Batch) -> dict[str, float]:
    """Errors of answers, and the share whose largest element is the same."""
    gap = np.abs(actual.astype(np.float64) - expected)
    return {
        "max_rel_error": float(gap.max() / np.abs(expected).max()),
        "rms_error": float(np.sqrt((gap**2).mean()) / expected.std()),
        "agreement": float((actual.argmax(-1) == expected.argmax(-1)).mean()),
    }


def share_in_int8(out: Path) -> float:
    """The share of the multiplications by constant weights that the calibration left to 8 bits, in the only region."""
    table = CalibrationTable.read(out / "calibration.json")
    (ranges,) = table.regions.values()
    gains = multiplications(*onnx_files.load_model(out / "regions" / "region_0" / "model.onnx"))
    return sum(gain for name, gain in gains.items() if not ranges[name].sensitive) / sum(gains.values())


def main() -> None:
    from pipeline import pretrained
    from tests.pretrained_models import original

    figures: dict[str, object] = {}
    for subject in subjects():
        reference = original(pretrained.fetch(subject.name))
        expected = np.concatenate([reference({"input": image})[0] for image in subject.test])
        for name, settings in PRECISIONS.items():
            precision = name.partition(",")[0]
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                report = convert_in(precision, subject, out, **settings)
                (region,) = report.regions
                figures[f"pretrained:{subject.name} {name}"] = {
                    **quality(expected, answers(out / "saved_model", subject.test)),
                    "images": len(subject.test),
                    "samples": len(subject.calibration),
                    "engines": {e.backend: e.precision for e in region.engines},
                    "megabytes": {e.backend: round(e.bytes / 1e6, 2) for e in region.engines},
                    **({"share_in_int8": share_in_int8(out)} if precision == "int8" else {}),
                    "notes": [e.note for e in region.engines if e.note],
                    "fallbacks": report.verification.fallbacks,
                }
    record.write("precision", figures)


if __name__ == "__main__":
    main()
