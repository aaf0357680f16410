"""tf2onnx's optimiser passes, driven without its deep copy of the graph around each.

The stock driver copies the whole graph, weights included, before every pass, so that it can go back when one crashes:
14 of the 15 seconds that ResNet-50 took. Here the caller is told of a crash, and builds the graph anew without that
pass.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from stages.translate.library import replaced

if TYPE_CHECKING:
    from tf2onnx.graph import Graph

# TensorRT takes Einsum as it is; the pass explodes it into Shape, Gather and ReduceProd.
_UNWANTED = ("einsum_optimizer",)
_MAX_ROUNDS = 10


class PassFailed(Exception):
    """An optimiser pass crashed and left the graph half edited.

    Args:
        name: the pass, by tf2onnx's name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(name)


def default_passes() -> tuple[str, ...]:
    """Names of the passes to run, in tf2onnx's order."""
    from tf2onnx import optimizer

    return tuple(name for name in optimizer._optimizers if name not in _UNWANTED)


def optimise(graph: Graph, names: Sequence[str]) -> Graph:
    """Run passes over a tf2onnx graph until none changes it; returns the graph that holds the result.

    Raises:
        PassFailed: a pass crashed; `graph` is unusable then.
    """
    from tf2onnx import optimizer

    if graph.contained_graphs:
        # The stock driver's deep copy also links Loop and If bodies to their surroundings anew; the passes need that.
        chosen = OrderedDict((name, optimizer._optimizers[name]) for name in names)
        return optimizer.optimize_graph(graph, catch_errors=True, optimizers=chosen)
    for iteration in range(_MAX_ROUNDS):
        changed = False
        for name in names:
            one_pass = optimizer._optimizers[name]()
            one_pass.opt_iteration = iteration
            try:
                graph = one_pass._optimize(graph) or graph
                graph.delete_unused_nodes(graph.outputs)
            except Exception as error:  # whatever a pass may raise
                raise PassFailed(name) from error
            changed |= one_pass.graph_been_opt
        if not changed:
            break
    return graph


@contextlib.contextmanager
def without_needless_copies(functions: bool) -> Iterator[None]:
    """Keep tf2onnx from copying all weights where nobody reads the copy.

    Args:
        functions: whether the TF graph has functions.
    """
    from tf2onnx import tfonnx
    from tf2onnx.graph import Node

    update_proto = Node.update_proto

    def update(node: Node, external_tensor_storage: object = None) -> None:
        # A model's initialisers are made from the node's `attr`; only nodes that are written out need their protobuf.
        if not node.is_const():
            update_proto(node, external_tensor_storage)

    with contextlib.ExitStack() as stack:
        stack.enter_context(replaced(Node, "update_proto", update))
        if not functions:  # it converts the whole graph once, only to look for calls
            stack.enter_context(replaced(tfonnx, "resolve_functions", lambda _graph: []))
        yield
