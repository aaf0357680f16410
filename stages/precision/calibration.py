"""Ranges of a region's tensors on samples: its ONNX model is run with every tensor of interest as an output."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stages import onnx_files
from stages.errors import CalibrationError, VerifyError
from stages.execute import Session
from stages.precision.bias import ChannelMeans
from stages.precision.folding import fold_normalisation
from stages.precision.histogram import METHODS, Histogram
from stages.precision.sensitivity import Kept, sensitive
from stages.precision.sites import convolved, quantisable
from stages.precision.table import CalibrationTable, Range
from stages.precision.types import Types
from stages.storage import link_or_copy

if TYPE_CHECKING:
    import onnx

    from stages.compare import Array


class Calibrator:
    """Observes a region's tensors, run by run, in ONNX Runtime on the CPU.

    Between runs it holds for each tensor to be quantised one histogram of fixed size, for each other float tensor two
    numbers, and the inputs of a few runs; while it observes, the activations of that run.

    Args:
        model: path of the region's ONNX file in float32, as `onnx_files.save_model` wrote it.
        method: entropy, minmax, percentile or mse.
        scratch: folder for a passing copy of the model; its weights are linked, not copied, where the disk is the same.

    Raises:
        CalibrationError: the method is unknown, or ONNX Runtime does not load the model.
    """

    def __init__(self, model: Path, method: str, *, scratch: Path) -> None:
        if method not in METHODS:
            raise CalibrationError(f"calibration method {method!r} is unknown", f"choose {', '.join(METHODS)}")
        self._method = method
        self.digest = onnx_files.digest(model)
        self.runs = 0
        proto, weights = onnx_files.load_model(model)
        self.inputs = {value.name: value for value in proto.graph.input}
        types = Types.of(proto, "calibration")
        floats = _floats(proto, types)
        fold_normalisation(proto, weights)
        wanted = quantisable(proto, weights)
        self._histograms = {name: Histogram(name in wanted) for name in floats}
        self._means = {name: ChannelMeans() for name in convolved(proto, weights)}
        self._kept = Kept()
        self._model, self._scratch = model, scratch
        try:
            self._session = _session(model, types, list(self._histograms), scratch)
        except VerifyError as error:
            raise CalibrationError(error.problem) from error

    def observe(self, batch: Mapping[str, Array]) -> None:
        """Run the region once. A tensor that holds NaN or infinity has no range that can be used from then on.

        Args:
            batch: an array for each input of the ONNX model, by name.

        Raises:
            CalibrationError: a missing or unknown input, a wrong dtype or rank; or the region can't be run.
        """
        self._check(batch)
        try:
            values = self._session.run(batch)
        except VerifyError as error:
            raise CalibrationError(error.problem, "give real samples with --samples") from error
        for name, value in {**batch, **values}.items():
            if name in self._histograms:
                self._histograms[name].observe(value)
            if name in self._means:
                self._means[name].observe(value)
        self._kept.add(batch)
        self.runs += 1

    def table(self, *, tolerated: float | None = None) -> CalibrationTable:
        """The ranges so far.

        Args:
            tolerated: largest error in int8 (see `sensitivity.DEFAULT_ERROR`); tensors that cause more are marked.

        Raises:
            CalibrationError: nothing was observed.
        """
        if not self.runs:
            raise CalibrationError("no samples to calibrate with", "give some with --samples")
        ranges: dict[str, Range] = {name: h.range(self._method) for name, h in self._histograms.items()}
        for name, means in self._means.items():
            ranges[name] = replace(ranges[name], means=means.values())
        if tolerated is not None:
            for name in sensitive(self._model, ranges, self._kept.batches, tolerated=tolerated, scratch=self._scratch):
                ranges[name] = replace(ranges[name], sensitive=True)
        return CalibrationTable(self._method, self.runs, {self.digest: ranges})

    def _check(self, batch: Mapping[str, Array]) -> None:
        import onnx

        if batch.keys() != self.inputs.keys():
            wrong = ", ".join(sorted(batch.keys() ^ self.inputs.keys()))
            raise CalibrationError(
                f"calibration: inputs {wrong} are missing or unknown", "give one array for each input"
            )
        for name, array in batch.items():
            kind = self.inputs[name].type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            if array.dtype != dtype:
                raise CalibrationError(f"calibration: input {name} is {array.dtype}", f"it must be {dtype}")
            if kind.HasField("shape") and len(kind.shape.dim) != array.ndim:
                raise CalibrationError(
                    f"calibration: input {name} has shape {array.shape}", f"its rank must be {len(kind.shape.dim)}"
                )


def _floats(model: onnx.ModelProto, types: Types) -> list[str]:
    """The float32 tensors that the main graph computes or is given."""
    made = [value.name for value in model.graph.input]
    made += [name for node in model.graph.node if node.op_type != "Constant" for name in node.output]
    return [name for name in dict.fromkeys(made) if name and types.is_float(name)]


def _session(path: Path, types: Types, names: list[str], scratch: Path) -> Session:
    """The model with all these tensors as outputs. Its copy goes again: ONNX Runtime has read or mapped it by then."""
    import onnx

    copy = onnx.load(path, load_external_data=False)
    known = {value.name for value in (*copy.graph.input, *copy.graph.output)}
    for name in names:
        if name not in known:
            copy.graph.output.append(onnx.helper.make_tensor_value_info(name, types.elements[name], None))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for file in onnx_files.files_beside(path):
            link_or_copy(file, Path(folder) / file.name)
        target = Path(folder) / path.name
        target.write_bytes(copy.SerializeToString())
        return Session(target)
