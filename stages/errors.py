"""Every error that GraftRT raises on purpose, on one page.

An error names its subject, the problem and the remedy:

    build: region_3 input image:0: shape (?, 224, 224, 3) is open and has no range
      try: --shape image:0=MIN,OPT,MAX

The command line prints the message and exits with code 1; the Python API raises it.
"""

from __future__ import annotations


class ConversionError(Exception):
    """A stated failure of a conversion; the base of all errors below.

    Args:
        problem: one sentence, `subject: what is wrong`.
        remedy: what the user can do about it, or an empty string where nothing can be done.
    """

    stage = "convert"

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{self.stage}: {problem}" + (f"\n  try: {remedy}" if remedy else ""))


class ModelError(ConversionError):
    """The model can't be found, read or understood."""

    stage = "model"


class FreezeError(ConversionError):
    """The model can't be frozen."""

    stage = "freeze"


class ExportError(ConversionError):
    """tf2onnx could not export a set of ops."""

    stage = "export"


class SplitError(ConversionError):
    """The graph can't be split into regions."""

    stage = "split"


class BuildError(ConversionError):
    """A back end refused a region, or a shape has no range."""

    stage = "build"


class CalibrationError(BuildError):
    """The ranges that int8 and fp8 need are missing, damaged or another model's."""


class StitchError(ConversionError):
    """The engines can't be put back into the TensorFlow graph."""

    stage = "stitch"


class VerifyError(ConversionError):
    """The stitched model can't be compared with TensorFlow."""

    stage = "verify"


class SampleError(VerifyError):
    """TensorFlow itself can't run the model on the sample inputs."""


class BackendError(ConversionError):
    """A back end is missing or unusable on this machine."""

    stage = "backend"


class EngineOpError(ConversionError):
    """The EngineCall op can't be compiled or loaded."""

    stage = "engine_op"


class ArtifactError(ConversionError):
    """A stage's folder is missing, incomplete, damaged or of another format version."""

    stage = "artifact"


class TfTrtError(ConversionError):
    """One of TF-TRT's calls can't be answered; its subclasses are also the exceptions that TF-TRT raised."""

    stage = "tftrt"


class ArgumentError(TfTrtError, ValueError):
    """An argument of one of TF-TRT's calls is wrong, or does not go with another one."""


class OrderError(TfTrtError, RuntimeError):
    """TF-TRT's calls came in the wrong order."""


class UnsupportedError(TfTrtError, NotImplementedError):
    """TF-TRT offered it and GraftRT does not."""
