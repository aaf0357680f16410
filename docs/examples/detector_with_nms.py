"""A detector whose non-maximum suppression stays in TensorFlow between two engines: `python docs/examples/detector_with_nms.py`.

Nothing is learnt here: the detector looks for bright squares, with weights written by hand, so that its answer can be
checked. Its shape is that of any one-stage detector: features, a box and a score for each place, NMS, a head for what is left.
"""

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

import stages.engine_op  # before a stitched model is loaded: TensorFlow must know the op
from pipeline import Config, convert

SIZE, CELL = 96, 8


class SquareDetector(tf.Module):
    """Finds bright squares of 16 × 16 pixels in an image of SIZE × SIZE and says whether they are red, green or blue."""

    def __init__(self):
        # The mean brightness of windows of 16 × 16 pixels, every 8 pixels: a convolution, as a trained one would be.
        self.brightness = tf.Variable(tf.ones([16, 16, 3, 1]) / (16 * 16))
        self.classes = tf.Variable(tf.eye(3) * 10.0)

    @tf.function(input_signature=[tf.TensorSpec([1, SIZE, SIZE, 3], tf.float32, "image")])
    def serve(self, image):
        scores = tf.sigmoid(20.0 * tf.nn.conv2d(image, self.brightness, CELL, "VALID") - 12.0)
        side = scores.shape[1]
        rows, columns = tf.meshgrid(tf.range(side), tf.range(side), indexing="ij")
        corner = tf.cast(tf.stack([rows, columns], -1), tf.float32) * CELL
        boxes = tf.reshape(tf.concat([corner, corner + 16.0], -1), [-1, 4])
        scores = tf.reshape(scores, [-1])
        kept = tf.image.non_max_suppression(boxes, scores, 10, iou_threshold=0.1, score_threshold=0.5)
        # A head looks again at what NMS has kept.
        crops = tf.image.crop_and_resize(image, tf.gather(boxes, kept) / SIZE, tf.zeros_like(kept), [8, 8])
        logits = tf.matmul(tf.reduce_mean(crops, [1, 2]), self.classes)
        return {"boxes": tf.gather(boxes, kept), "scores": tf.gather(scores, kept), "classes": tf.nn.softmax(logits)}


# 1. A model as anybody would have saved it, and an image with three squares in it.
work = Path(tempfile.mkdtemp())
detector = SquareDetector()
tf.saved_model.save(detector, str(work / "model"), signatures=detector.serve)
image = np.full((1, SIZE, SIZE, 3), 0.05, np.float32)
for row, column, colour in ((8, 16, 0), (48, 64, 1), (72, 8, 2)):
    image[0, row : row + 16, column : column + 16, colour] = 1.0

# 2. Convert it, verified on this very image. What TensorRT does not take stays in TensorFlow, with the reason.
np.savez(work / "samples.npz", image=image)
report = convert(work / "model", work / "out", Config(samples=work / "samples.npz", min_region=2))
print(report.ops_in_engines, "of", report.ops_total, "ops in", len(report.regions), "engines")
print("in TensorFlow:", ", ".join(sorted({op.op for op in report.left_in_tensorflow})))

# 3. Run it: boxes come out as before.
stages.engine_op.reset_stats()  # verification ran the engines too
serve = tf.saved_model.load(str(work / "out/saved_model")).signatures["serving_default"]
found = serve(image=tf.constant(image))
for box, classes in sorted(zip(found["boxes"].numpy().tolist(), found["classes"].numpy(), strict=True)):
    print(f"{('red', 'green', 'blue')[classes.argmax()]} square at row {box[0]:.0f}, column {box[1]:.0f}")
print("engine calls:", sum(region["engine_calls"] for region in stages.engine_op.stats().values()))

# 4. The original says the same.
expected = detector.serve(tf.constant(image))
print("as TensorFlow says it:", all(np.allclose(found[name], expected[name], atol=1e-5) for name in expected))
