"""Models with trained weights and the two composites: ops in engines, error, and why the rest stays in TensorFlow."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import skimage.data

from benchmarks import record
from fixtures import composites
from fixtures.photographs import astronaut
from pipeline import Config, Report, convert, pretrained


def main() -> None:
    figures: dict[str, object] = {}
    for name in pretrained.known():
        with tempfile.TemporaryDirectory() as folder:
            config = Config(samples=_samples(name, Path(folder) / "samples.npz"))
            figures[f"pretrained:{name}"] = _figures(convert(f"pretrained:{name}", Path(folder) / "out", config))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model = composites.tagger(work / "musicnn").save(work / "model")
        figures["sound → stft → musicnn"] = _figures(convert(model, work / "out", Config()))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        album = composites.album(work / "mobilenet", [skimage.data.chelsea(), skimage.data.coffee()])
        samples = composites.write_samples(album, work / "samples.npz")
        report = convert(album.save(work / "model"), work / "out", Config(samples=samples))
        figures["tf.Example → PNG → MobileNet"] = _figures(report)
    record.write("pretrained", figures)


def _samples(name: str, path: Path) -> Path | None:
    """A face for the models that find faces: they find nothing in what is drawn at random, and then all is equal."""
    if name == "mtcnn":
        np.savez(path, image=astronaut(192)[None])
    elif name == "faceboxes":
        np.savez(path, image_tensor=astronaut(256)[None].astype(np.uint8))
    else:
        return None
    return path


def _figures(report: Report) -> dict[str, object]:
    left: dict[str, Counter[str]] = defaultdict(Counter)
    for op in report.left_in_tensorflow:
        left[op.reason.value][op.op] += 1
    return {
        "regions": len(report.regions),
        "ops_in_engines": report.ops_in_engines,
        "ops_total": report.ops_total,
        "plan_megabytes": {
            backend: round(
                sum(e.bytes for region in report.regions for e in region.engines if e.backend == backend) / 1e6, 1
            )
            for backend in sorted({engine.backend for region in report.regions for engine in region.engines})
        },
        "max_rel_error": max(output.max_rel_error for output in report.verification.outputs),
        "engines_run": report.verification.engines_run,
        "left_in_tensorflow": {reason: dict(ops.most_common()) for reason, ops in left.items()},
    }


if __name__ == "__main__":
    main()
