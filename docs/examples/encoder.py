"""A small transformer encoder, its engine in fp16: `python docs/examples/encoder.py`.

Sequences have any length up to 64, and any batch up to 8: `shape_range` says for which sizes the engine is built.
"""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

import stages.engine_op  # before a stitched model is loaded: TensorFlow must know the op
from pipeline import Config, convert, shape_range

# 1. Two layers of pre-norm self-attention over token embeddings, masked where the token is 0. Weights are random.
tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
tokens = layers.Input((None,), dtype="int32", name="tokens")
hidden = layers.Embedding(1000, 64)(tokens)
mask = layers.Lambda(lambda ids: tf.not_equal(ids, 0)[:, tf.newaxis, :], name="mask")(tokens)
for _ in range(2):
    normed = layers.LayerNormalization()(hidden)
    attended = layers.MultiHeadAttention(4, 16)(normed, normed, attention_mask=mask)
    hidden = layers.Add()([hidden, attended])
    normed = layers.LayerNormalization()(hidden)
    hidden = layers.Add()([hidden, layers.Dense(64)(layers.Dense(256, activation="gelu")(normed))])
model = tf.keras.Model(tokens, layers.LayerNormalization(name="states")(hidden))

# 2. Convert it to fp16. It is verified against float32, within 2e-3 of the largest value.
out = Path(tempfile.mkdtemp()) / "out"
sizes = (shape_range("tokens=1x8,4x32,8x64"),)
report = convert(model, out, Config(precision="fp16", shapes=sizes))
print(report.ops_in_engines, "of", report.ops_total, "ops in", len(report.regions), "engine")
print("precision:", ", ".join(sorted({engine.precision for region in report.regions for engine in region.engines})))

# 3. Run it at two sizes, and compare with Keras in float32.
stages.engine_op.reset_stats()  # verification ran the engines too
serve = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
for batch, length in ((2, 12), (8, 64)):
    ids = tf.constant(np.random.default_rng(0).integers(1, 1000, (batch, length)), tf.int32)
    (states,) = serve(tokens=ids).values()
    error = np.abs(states - model(ids)).max() / np.abs(model(ids)).max()
    print(f"{batch} sequences of {length} tokens: states {states.shape}, as TensorFlow's within 2e-3: {error < 2e-3}")
print("engine calls:", sum(region["engine_calls"] for region in stages.engine_op.stats().values()))
