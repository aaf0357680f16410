"""The graph before and after as TensorBoard event files: `tensorboard --logdir OUT/tensorboard`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from stages.artifacts import EngineSet
from stages.grafts import PlanSource, Policy
from stages.graph import Graph
from stages.stitching import stitch_graph

if TYPE_CHECKING:
    import tensorflow as tf

_KEPT_BYTES = 1024
"""Constants above this lose their values: nobody reads them in a picture, and browsers choke on them."""
_CLUSTER = "_XlaCluster"
"""TensorBoard colours nodes by this attribute (Color: XLA cluster)."""


def write_graphs(graph: Graph, engines: EngineSet, folder: Path, on_failure: str) -> None:
    """Write `folder/original` and `folder/stitched`, event files with one graph each. In both, the ops of a region carry its
    name where TensorBoard looks for an XLA cluster, so that it can colour them."""
    import tensorflow as tf

    built = {engine.region for engine in engines.engines}
    original = tf.compat.v1.GraphDef()
    original.CopyFrom(graph.graph_def)
    stitched = stitch_graph(graph, engines, PlanSource.FILE, Policy(on_failure)).graph_def
    owner = {op: region.name for region in engines.partition.regions if region.name in built for op in region.ops}
    for node in original.node:
        if node.name in owner:
            node.attr[_CLUSTER].s = owner[node.name].encode()
    for node in stitched.node:
        if node.op == "EngineCall":
            node.attr[_CLUSTER].s = node.name.rsplit("/", 1)[-1].encode()
    for name, graph_def in (("original", original), ("stitched", stitched)):
        strip_constants(graph_def)
        writer = tf.summary.create_file_writer(str(folder / name))
        with writer.as_default():
            tf.summary.graph(graph_def)
        writer.close()


def strip_constants(graph_def: tf.compat.v1.GraphDef) -> None:
    """Take the values out of a graph's large constants; dtypes and shapes stay."""
    for nodes in (graph_def.node, *(function.node_def for function in graph_def.library.function)):
        _strip(nodes)


def _strip(nodes: Iterable[tf.compat.v1.NodeDef]) -> None:
    from tensorflow.core.framework import tensor_pb2

    for node in nodes:
        if node.op == "Const" and node.attr["value"].ByteSize() > _KEPT_BYTES:
            value = node.attr["value"].tensor
            value.CopyFrom(tensor_pb2.TensorProto(dtype=value.dtype, tensor_shape=value.tensor_shape))
