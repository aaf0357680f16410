"""Sentences in, sentiment out: words become numbers by a vocabulary table, which stays in TensorFlow, and an engine does the
rest: `python docs/examples/text_classifier.py`.
"""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

import stages.engine_op  # before a stitched model is loaded: TensorFlow must know the op
from pipeline import Config, convert

GOOD = ["a wonderful film", "great acting and a lovely story", "I enjoyed every minute", "funny and bright, a joy"]
BAD = ["a terrible film", "boring acting and a weak story", "I regret every minute", "dull and sad, a waste"]

# 1. Train a small classifier. Its input is text: it splits it into words and looks them up by itself.
tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
vectorize = layers.TextVectorization(output_sequence_length=16)
vectorize.adapt(GOOD + BAD)
text = layers.Input((1,), dtype="string", name="text")
hidden = layers.Embedding(vectorize.vocabulary_size(), 64)(vectorize(text))
hidden = layers.Conv1D(64, 3, padding="same", activation="relu")(hidden)
hidden = layers.GlobalMaxPooling1D()(hidden)
hidden = layers.Dense(64, activation="relu")(hidden)
model = tf.keras.Model(text, layers.Dense(1, activation="sigmoid", name="good")(hidden))
model.compile("adam", "binary_crossentropy")
sentences, labels = tf.constant([[s] for s in GOOD + BAD]), tf.constant([[1.0]] * len(GOOD) + [[0.0]] * len(BAD))
model.fit(sentences, labels, epochs=30, verbose=0)

# 2. Convert it. Strings and tables are TensorFlow's business; the report says so.
out = Path(tempfile.mkdtemp()) / "out"
report = convert(model, out, Config(min_region=3))
print(report.ops_in_engines, "of", report.ops_total, "ops in", len(report.regions), "engine")
print("in TensorFlow:", ", ".join(sorted({op.op for op in report.left_in_tensorflow})))

# 3. Ask it about sentences that it has not seen.
asked = ["a lovely film, wonderful", "a weak and boring waste"]
stages.engine_op.reset_stats()  # verification ran the engines too
serve = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
(answer,) = serve(text=tf.constant([[s] for s in asked])).values()
for sentence, value in zip(asked, answer.numpy()[:, 0], strict=True):
    print(f"{sentence!r}: {'good' if value > 0.5 else 'bad'}")
print("engine calls:", sum(region["engine_calls"] for region in stages.engine_op.stats().values()))

# 4. Keras says the same.
expected = model(tf.constant([[s] for s in asked]))
print("as TensorFlow says it:", bool(np.allclose(answer, expected, atol=1e-5)))
