"""Models with custom ops: refused until the op is loaded, then converted around it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tests.test_architecture import ROOT

SOURCE = """
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

REGISTER_OP("GraftrtTestTwice").Input("x: float").Output("y: float").SetShapeFn(
    [](tensorflow::shape_inference::InferenceContext* c) { c->set_output(0, c->input(0)); return absl::OkStatus(); });

class Twice : public tensorflow::OpKernel {
 public:
  using OpKernel::OpKernel;
  void Compute(tensorflow::OpKernelContext* context) override {
    tensorflow::Tensor* y = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(0).shape(), &y));
    y->flat<float>() = context->input(0).flat<float>() * 2.0f;
  }
};
REGISTER_KERNEL_BUILDER(Name("GraftrtTestTwice").Device(tensorflow::DEVICE_CPU), Twice);
"""

SERVE = """
import sys, tensorflow as tf, stages.engine_op
tf.load_op_library(sys.argv[2])
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
print(serve(x=tf.constant([[1.0, -1.0]]))["y"].numpy().tolist())
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled op; this process never loads it."""
    folder = tmp_path_factory.mktemp("op")
    (folder / "twice.cc").write_text(SOURCE)
    compiler = os.environ.get("CXX", "g++")
    flags = ["-std=c++17", "-shared", "-fPIC", "-O0", *tf.sysconfig.get_compile_flags(), "-DNDEBUG"]
    command = [compiler, *flags, "twice.cc", "-o", "twice.so", *tf.sysconfig.get_link_flags()]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    return folder / "twice.so"


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT, check=False)


@pytest.mark.slow
def test_a_custom_op_stays_in_tensorflow_once_its_library_is_given(library: Path, tmp_path: Path) -> None:
    graph = tf.compat.v1.GraphDef()
    with tf.Graph().as_default() as rest:
        x = tf.compat.v1.placeholder(tf.float32, [None, 2], "x")
        tf.nn.relu(tf.matmul(tf.identity(x, "twice"), tf.eye(2)) + 1, name="y")
    graph.CopyFrom(rest.as_graph_def())
    node = next(node for node in graph.node if node.name == "twice")
    node.op = "GraftrtTestTwice"
    node.attr.clear()
    (tmp_path / "model.pb").write_bytes(graph.SerializeToString())
    command = ["-m", "pipeline", "convert", tmp_path / "model.pb", tmp_path / "out"]
    options = ["--backend", "onnxruntime", "--min-region", "1"]

    refused = python(*command, *options)
    assert refused.returncode == 1
    assert "uses the op GraftrtTestTwice, which is not loaded" in refused.stderr
    assert "try: --op-library" in refused.stderr

    done = python(*command, *options, "--op-library", library)
    assert done.returncode == 0, done.stderr
    assert "GraftrtTestTwice" in done.stdout
    served = python("-c", SERVE, tmp_path / "out" / "saved_model", library)
    assert served.stdout.strip() == "[[3.0, 0.0]]", served.stderr
    checked = python("-m", "pipeline", "verify", tmp_path / "out", "--op-library", library)
    assert checked.returncode == 0, checked.stderr
