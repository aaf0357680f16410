"""ONNX models on disk: weights outside the protobuf, named after their content, never copied as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from stages import onnx_files
from stages.errors import ExportError
from stages.precision import convert
from stages.storage import sha256_file
from tests import onnx_models as tiny

KERNEL = tiny.weights(8, 3, 3, 3)


def with_stand_in() -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """`tiny.conv`, its kernel a stand-in for a transposed array, as after a translation."""
    model = tiny.conv(2)
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "w0")
    kernel.CopyFrom(onnx_files.stand_in("w0", TensorProto.FLOAT, KERNEL.shape, "node"))
    return model, {"node": np.ascontiguousarray(KERNEL.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)}


def run(model: Path | bytes) -> np.ndarray:
    import onnxruntime

    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    return np.asarray(session.run(None, {"input_0": x})[0])


@pytest.mark.parametrize("block_bytes", [1 << 20, 100, 12])
def test_a_model_with_its_weights_beside_it_runs_and_is_unchanged_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(onnx_files, "_BLOCK_BYTES", block_bytes)
    model, weights = with_stand_in()
    before = model.SerializeToString(deterministic=True)
    onnx_files.save_model(model, tmp_path / "model.onnx", weights)
    assert model.SerializeToString(deterministic=True) == before
    (file,) = onnx_files.files_beside(tmp_path / "model.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", file.name}
    assert file.name == sha256_file(file) + ".weights"
    expected = run(tiny.conv(2).SerializeToString())
    np.testing.assert_array_equal(run(tmp_path / "model.onnx"), expected)
    np.testing.assert_array_equal(run(onnx_files.as_one_file(tmp_path / "model.onnx")), expected)


def test_weights_are_mapped_when_a_model_is_loaded(tmp_path: Path) -> None:
    model, weights = with_stand_in()
    onnx_files.save_model(model, tmp_path / "model.onnx", weights)
    loaded, mapped = onnx_files.load_model(tmp_path / "model.onnx")
    np.testing.assert_array_equal(mapped["w0"], KERNEL)
    assert isinstance(mapped["w0"].base, np.memmap)
    onnx_files.save_model(loaded, tmp_path / "again.onnx", mapped)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "model.onnx").read_bytes()


def test_a_model_s_digest_covers_the_weights_beside_it(tmp_path: Path) -> None:
    model, weights = with_stand_in()
    path = tmp_path / "model.onnx"
    onnx_files.save_model(model, path, weights)
    first = onnx_files.digest(path)
    weights["node"][0, 0, 0, 0] += 1
    onnx_files.save_model(model, path, weights)
    assert onnx_files.digest(path) != first


def test_half_precision_of_weights_beside_the_model_is_that_of_weights_in_it(tmp_path: Path) -> None:
    model, weights = with_stand_in()
    onnx_files.save_model(convert(model, "fp16", weights), tmp_path / "model.onnx", weights)
    (file,) = onnx_files.files_beside(tmp_path / "model.onnx")
    assert file.stat().st_size == KERNEL.size * 2
    np.testing.assert_array_equal(run(tmp_path / "model.onnx"), run(convert(tiny.conv(2), "fp16").SerializeToString()))


def test_a_weight_beside_the_model_that_float16_can_t_hold_stays_float32(tmp_path: Path) -> None:
    model, weights = with_stand_in()
    weights["node"][0, 0, 0, 0] = 1e6
    onnx_files.save_model(convert(model, "fp16", weights), tmp_path / "model.onnx", weights)
    (file,) = onnx_files.files_beside(tmp_path / "model.onnx")
    assert file.stat().st_size == KERNEL.size * 4


def test_weights_that_can_t_be_written_are_a_stated_error(tmp_path: Path) -> None:
    model, weights = with_stand_in()
    (tmp_path / "partial.weights").mkdir()
    with pytest.raises(ExportError, match="Is a directory"):
        onnx_files.save_model(model, tmp_path / "model.onnx", weights)
