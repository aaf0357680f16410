"""Models with trained weights, converted: right answers on real data, close to TensorFlow at batch 1 and 3, in engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from skimage import data

from fixtures import composites, sounds
from fixtures.example import Example
from fixtures.photographs import astronaut, photograph
from pipeline import pretrained
from stages import engine_op
from tests.conftest import Converted, relative_error
from tests.pretrained_models import (
    Arrays,
    fetch_or_skip,
    original,
    text_indices,
    thai_features,
    vocabulary,
)

pytestmark = pytest.mark.slow

Convert = Callable[..., Converted]
FP32 = 1e-5
CLASSES = {"chelsea": 286, "coffee": 968}
"""ImageNet's Egyptian cat and espresso, with 0 for background."""


def answers(
    fetched: pretrained.Fetched, result: Converted, inputs: Arrays, batches: tuple[int, ...] = (1, 3)
) -> list[np.ndarray]:
    """The stitched model's results on all rows of the inputs, after comparing it with TensorFlow on the first row and
    on three, in every engine, twice each."""
    run_original = original(fetched)
    batched = [
        {name: value[:size] for name, value in inputs.items()} for size in (*batches, len(next(iter(inputs.values()))))
    ]
    before = {region.name: engine_op.stats()[region.name]["engine_calls"] for region in result.report.regions}
    for rows in batched:
        expected = run_original(rows)
        for _ in range(2):
            results = result.run(rows)
            actual = [results[name] for name in sorted(results)]
            assert len(actual) == len(expected)
            for right, value in zip(expected, actual, strict=True):
                assert value.shape == right.shape
                assert relative_error(right, value) <= FP32
    for name, calls in before.items():
        assert engine_op.stats()[name] == {"engine_calls": calls + 2 * len(batched), "fallbacks": {}}
    return actual


def whole(result: Converted) -> bool:
    return result.report.ops_in_engines == result.report.ops_total and len(result.report.regions) == 1


def test_fer_sees_that_the_astronaut_is_happy(converted: Convert) -> None:
    fetched = fetch_or_skip("fer")
    result = converted("pretrained:fer")
    assert whole(result)
    face = photograph("astronaut", 64, slice(50, 200), slice(140, 290)) @ np.array([0.299, 0.587, 0.114])
    image = ((face / 255 - 0.5) * 2).astype(np.float32)[None, :, :, None]
    (scores,) = answers(fetched, result, {"image": np.concatenate([image, image[:, :, ::-1], -image])})
    assert scores[0].argmax() == fetched.entry.labels.index("happy")
    assert scores[0].max() > 0.9


def test_mobilenet_recognises_photographs_as_saved_model_and_as_graph_def(converted: Convert) -> None:
    fetched = fetch_or_skip("mobilenet-pb")
    result = converted("pretrained:mobilenet-pb")
    assert result.report.ops_in_engines >= 0.99 * result.report.ops_total
    embedded = tf.Graph()
    with embedded.as_default():
        graph_def = tf.compat.v1.GraphDef.FromString((result.out / "model.pb").read_bytes())
        tf.graph_util.import_graph_def(graph_def, name="")
    for name, expected in CLASSES.items():
        image = ((photograph(name, 224) - 128) / 128)[None]
        (scores,) = answers(fetched, result, {"input": image}, ())
        assert scores[0].argmax() == expected
        with tf.compat.v1.Session(graph=embedded) as session:
            assert relative_error(scores, session.run(fetched.entry.outputs[0], {"input:0": image})) <= FP32


def test_basic_pitch_hears_the_notes_of_a_chord(converted: Convert) -> None:
    fetched = fetch_or_skip("basic-pitch")
    result = converted("pretrained:basic-pitch", backend="onnxruntime")
    assert set(result.left) == {"Assert"}
    assert len(result.report.regions) == 1
    hiss = sounds.noise(43844)
    chord = sounds.chord(22050, 43844)
    rows = np.stack([chord, hiss, chord / 4 + hiss / 100]).astype(np.float32)[:, :, None]
    results = answers(fetched, result, {"input_2": rows})
    notes = results[1][0, 20:150].mean(0)  # contour, note, onset
    assert {21 + int(key) for key in np.argsort(notes)[-3:]} == set(sounds.CHORD)
    fourth, third = np.sort(notes)[-4:-2]
    assert third > 0.7
    assert fourth < 0.4


def test_musicnn_tells_a_piano_from_drums(converted: Convert) -> None:
    fetched = fetch_or_skip("musicnn")
    result = converted("pretrained:musicnn", backend="onnxruntime")
    assert whole(result)
    spectrograms = composites.spectrogram(tf.constant(composites.music())).numpy()
    (tags,) = answers(fetched, result, {"model/Placeholder": spectrograms})
    labels = fetched.entry.labels
    assert [labels[row.argmax()] for row in tags[:2]] == ["piano", "drums"]


def test_speech_music_tells_noise_from_music(converted: Convert) -> None:
    """On made sounds: the recording of noise that Debian's alsa-utils holds is in no Python package."""
    fetched = fetch_or_skip("speech-music")
    result = converted("pretrained:speech-music")
    assert whole(result)
    recordings = (sounds.noise(16000), sounds.plucked(16000, 16000), sounds.noise(16000, seed=1))
    patches = np.stack([sounds.speech_music_patches(recording)[0] for recording in recordings])
    (scores,) = answers(fetched, result, {"reshape_input": patches})
    labels = fetched.entry.labels
    assert [labels[row.argmax()] for row in scores] == ["noise", "music", "noise"]
    assert scores.max(1).min() > 0.9


def test_deepcut_splits_a_thai_sentence_into_its_words(converted: Convert) -> None:
    fetched = fetch_or_skip("deepcut")
    result = converted("pretrained:deepcut", backend="onnxruntime")
    assert whole(result)
    text = "ฉันอยากกินข้าวของฉัน"
    (begins,) = answers(fetched, result, thai_features(fetched, text))
    cuts = [i for i in range(len(text)) if i == 0 or begins[i, 0] > 0.5]
    words = [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    assert words == ["ฉัน", "อยาก", "กิน", "ข้าว", "ของ", "ฉัน"]


def test_textgenrnn_goes_on_with_a_text(converted: Convert) -> None:
    fetched = fetch_or_skip("textgenrnn")
    result = converted("pretrained:textgenrnn", backend="onnxruntime")
    assert whole(result)
    characters = vocabulary(fetched)
    rows = np.stack([text_indices(characters, text) for text in ("the United State", "How to make", "What is the bes")])
    (scores,) = answers(fetched, result, {"text": rows})
    names = {index: character for character, index in characters.items()}
    assert [names[int(row.argmax())] for row in scores] == ["s", " ", "t"]


def test_mtcnn_finds_the_face_and_nothing_in_a_cup(converted: Convert) -> None:
    fetched = fetch_or_skip("mtcnn")
    result = converted("pretrained:mtcnn", backend="onnxruntime")
    assert whole(result)
    face = astronaut(192)
    boxes, scores = answers(fetched, result, {"image": np.stack([face, face[:, ::-1], photograph("coffee", 192)])})
    assert (scores[:2, 0] > 0.99).all()
    assert not scores[:2, 1:].any()
    assert not scores[2].any()
    lies_on_the_face(boxes[0, 0] / 192)
    top, left, bottom, right = boxes[1, 0] / 192
    lies_on_the_face(np.array([top, 1 - right, bottom, 1 - left]))


def lies_on_the_face(box: np.ndarray) -> None:
    """Whether a box (top, left, bottom, right, as shares) is the face in `astronaut`, but for a tenth of the image."""
    np.testing.assert_allclose(box, [0.23, 0.34, 0.68, 0.68], atol=0.1)


def test_faceboxes_finds_the_face(converted: Convert) -> None:
    """A graph of TensorFlow.js with non-maximum suppression in a loop of TensorFlow 1, which stays in TensorFlow."""
    fetched = fetch_or_skip("faceboxes")
    result = converted("pretrained:faceboxes", backend="onnxruntime")
    assert result.report.ops_in_engines >= 480
    assert result.left["NonMaxSuppressionV3"] == "control flow"
    face = astronaut(256).astype(np.uint8)
    boxes, _, scores = answers(fetched, result, {"image_tensor": np.stack([face, face[:, ::-1], 255 - face])})
    assert (scores[:2, 0] > 0.9).all()
    assert (scores[:2, 1] < 0.5).all()
    lies_on_the_face(boxes[0, 0])


def compare(example: Example, result: Converted, output: str) -> np.ndarray:
    """The stitched composite against the live one, on one row and on all, twice each."""
    (name,) = example.inputs
    for rows in (example.inputs[name][:1], example.inputs[name]):
        expected = example.module.serve(tf.constant(rows))[output].numpy()
        for _ in range(2):
            (actual,) = result.run({name: rows}).values()
            assert relative_error(expected, actual) <= FP32
    for region in result.report.regions:
        assert not engine_op.stats()[region.name]["fallbacks"]
    return actual


def test_sound_goes_through_stft_to_tags(tmp_path: Path, converted: Convert) -> None:
    fetched = fetch_or_skip("musicnn")
    example = composites.tagger(tmp_path / "musicnn")
    result = converted(example, backend="onnxruntime")
    assert whole(result)
    tags = compare(example, result, "tags")
    labels = fetched.entry.labels
    assert [labels[row.argmax()] for row in tags[:2]] == ["piano", "drums"]


def test_stored_images_go_through_parsing_and_decoding_to_classes(tmp_path: Path, converted: Convert) -> None:
    fetch_or_skip("mobilenet-pb")
    example = composites.album(tmp_path / "mobilenet", [data.chelsea(), data.coffee(), data.chelsea()[:, ::-1]])
    samples = composites.write_samples(example, tmp_path / "samples.npz")
    result = converted(example, backend="onnxruntime", samples=samples)
    assert {"ParseExampleV2", "DecodePng"} <= set(result.left)
    (network,) = result.report.regions
    assert sum("MobilenetV1" in op for op in network.ops) > 100
    classes = compare(example, result, "classes")
    assert classes.argmax(1).tolist() == [CLASSES["chelsea"], CLASSES["coffee"], CLASSES["chelsea"]]
