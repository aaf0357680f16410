"""Tiny regions for the EngineCall tests: an ONNX plan, and the TensorFlow function that computes the same."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf
    from onnx import ModelProto

    from stages.engine_op.interface import Interface, Plan

WIDTH = 3
Profiles = tuple[tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...], ...]


def onnx_model(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    inputs: dict[str, tuple[str, Sequence[int | str]]],
    outputs: dict[str, tuple[str, Sequence[int | str]]],
    constants: dict[str, np.ndarray] | None = None,
) -> ModelProto:
    """Nodes as (op, inputs, outputs); tensors as name: (ONNX dtype, shape)."""
    from onnx import TensorProto, helper, numpy_helper

    def infos(tensors: dict[str, tuple[str, Sequence[int | str]]]) -> list[object]:
        return [helper.make_tensor_value_info(n, getattr(TensorProto, d), s) for n, (d, s) in tensors.items()]

    graph = helper.make_graph(
        [helper.make_node(op, read, written) for op, read, written in nodes],
        "region",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def affine_model(offset: float = 1.0) -> ModelProto:
    """`output_0 = 2 x + offset` and `output_1 = x > 0`, x float32 (n, 3)."""
    return onnx_model(
        [
            ("Mul", ["input_0", "two"], ["scaled"]),
            ("Add", ["scaled", "offset"], ["output_0"]),
            ("Greater", ["input_0", "zero"], ["output_1"]),
        ],
        {"input_0": ("FLOAT", ["n", WIDTH])},
        {"output_0": ("FLOAT", ["n", WIDTH]), "output_1": ("BOOL", ["n", WIDTH])},
        {"two": np.float32(2), "offset": np.float32(offset), "zero": np.float32(0)},
    )


def plan_of(data: bytes, *, device: str = "cpu", backend: str = "onnxruntime", profiles: Profiles = ()) -> Plan:
    from stages.engine_op.interface import Plan

    digest = hashlib.sha256(data).hexdigest()
    return Plan(backend, device, "1", "fp32", digest, len(data), digest, (), profiles)


def affine_interface(
    plans: Sequence[Plan], region: str, *, storage: str = "file", on_failure: str = "native"
) -> Interface:
    from stages.engine_op.interface import Interface, Port

    return Interface(
        region,
        (Port("input_0", "float32", (None, WIDTH)),),
        (Port("output_0", "float32", (None, WIDTH)), Port("output_1", "bool", (None, WIDTH))),
        tuple(plans),
        storage,
        on_failure,
    )


def affine_segment(offset: float | tf.Variable = 1.0) -> tf.types.experimental.ConcreteFunction:
    """The native segment of `affine_model`; a variable becomes a capture."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, WIDTH), tf.float32)])
    def affine_native(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return 2.0 * x + offset, x > 0

    return affine_native.get_concrete_function()


def affine_call(
    x: tf.Tensor,
    folder: Path,
    region: str,
    *,
    plan_offset: float = 1.0,
    native_offset: float | tf.Variable = 1.0,
    on_failure: str = "native",
    profiles: Profiles = (),
) -> list[tf.Tensor]:
    """An EngineCall of an affine region; where the offsets differ, the result tells who computed it."""
    from stages.engine_op import engine_call

    data = affine_model(plan_offset).SerializeToString()
    path = folder / f"{region}.onnx"
    if not path.exists():
        path.write_bytes(data)
    interface = affine_interface([plan_of(data, profiles=profiles)], region, on_failure=on_failure)
    return engine_call(
        [x], [], [str(path)], native_segment=affine_segment(native_offset), interface=interface, name=f"call_{region}"
    )


def run_python(program: str, *arguments: str, timeout_seconds: int = 240, **environment: str) -> CompletedProcess[str]:
    """Run a program in a fresh interpreter that finds GraftRT and the tests.

    Raises:
        AssertionError: it didn't end with 0.
    """
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "1", **environment},
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
