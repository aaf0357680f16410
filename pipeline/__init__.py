"""GraftRT's whole public Python API: `convert` and what it takes and gives."""

from pipeline.config import Config, shape_range
from pipeline.report import Report
from pipeline.run import convert
from stages.errors import ConversionError

__all__ = ["Config", "ConversionError", "Report", "convert", "shape_range"]
