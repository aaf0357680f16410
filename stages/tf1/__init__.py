"""Models of TensorFlow 1: a MetaGraph whose variables and tables live in a session.

`opening.py` opens SavedModels without TensorFlow 2's objects and checkpoints (`.meta`). `modern.py` rewrites their ops to
those of TensorFlow 2, `signature.py` cuts out what one signature needs, and `state.py` restores the variables and
tables that this needs as TensorFlow 2's objects. What comes out is a tf.Module with one function for each signature,
which freezes, stitches and saves like any other.
"""
