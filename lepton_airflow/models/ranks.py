"""What a training loop asks of the others when several processes train one model together."""

from __future__ import annotations

from typing import Any, Protocol


class Ranks(Protocol):
    """The processes, called ranks, that train one model: each holds a share of the examples, and all take each step together.

    :ivar count: how many there are
    :ivar examples: how many examples all of them hold
    """

    count: int
    examples: int

    def sum(self, tensors: list[Any]) -> list[Any]:
        """Each tensor's sum over all ranks, inside a ``tf.function``; every rank gets the same bits."""
