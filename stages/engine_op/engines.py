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
    """A dense tensor in TensorFlow's memory, valid during one call; `address` is never 0."""

    address: int
    dtype: DType
    shape: tuple[int, ...]


class Engine(Protocol):
    """A loaded plan, shared by every kernel that has it. Its methods are called from several threads at once."""

    def run(self, inputs: dict[str, TensorView], outputs: Sequence[str], allocate: Allocate) -> None:
        """Compute `outputs` (bindings, in the op's order) of `inputs` (by binding; surplus ones are ignored).

        Raises:
            CannotRun: the engine failed; nothing was promised about outputs that are allocated already.
        """
