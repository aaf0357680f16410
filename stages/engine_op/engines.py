"""What an engine is to the runtime, whichever library runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stages.engine_op.dtypes import DType

Allocate = Callable[[int, DType, tuple[int, ...]], int]
"""Allocates output `index` with a dtype and shape in TensorFlow's memory; the address.

Raises:
    CannotRun: TensorFlow has no memory, or the op promises another dtype.
"""


@dataclass(frozen=True, slots=True)
class TensorView:
    """A dense tensor in TensorFlow's memory, valid during one call; `address` is never 0. `position` is its place among
    the op's inputs; on a GPU it may be `on_host` all the same."""

    address: int
    dtype: DType
    shape: tuple[int, ...]
    position: int = 0
    on_host: bool = False


class Engine(Protocol):
    """A loaded plan, shared by every kernel that has it. Its methods are called from several threads at once."""

    def run(self, inputs: dict[str, TensorView], outputs: Sequence[str], allocate: Allocate, stream: int) -> int:
        """Compute `outputs` (bindings, in the op's order) of `inputs` (by binding; surplus ones are ignored).

        On a GPU the work is enqueued on `stream`. Returns the record of a captured graph that the kernel may launch by
        itself for inputs of these shapes, 0 where there is none.

        Raises:
            CannotRun: the engine failed; nothing was promised about outputs that are allocated already.
        """

    def close(self) -> None:
        """Free what the engine holds; its last user has gone."""
