"""`precision="auto"`: for every layer the fastest precision with which the model stays within the largest error allowed.

`search.py` searches, `trial.py` says what an assignment does to the model's outputs, `mixed.py` writes it into ONNX.
"""

from stages.autoprecision.choose import LADDER, AutoOptions, choose, demote
from stages.autoprecision.mixed import mixed

__all__ = ["LADDER", "AutoOptions", "choose", "demote", "mixed"]
