"""All that serving a stitched model needs: importing this package makes TensorFlow know the EngineCall op.

    import stages.engine_op
    model = tf.saved_model.load("out/saved_model")

The import loads TensorFlow, and compiles the op the first time; import it, and its submodules, inside functions where
start-up counts.
"""

from stages.engine_op.op import RegionStats, engine_call, load, native_only, reset_stats, stats
from stages.engine_op.warmup import Latency, warmup

__all__ = ["Latency", "RegionStats", "engine_call", "load", "native_only", "reset_stats", "stats", "warmup"]

load()
