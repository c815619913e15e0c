"""What the present task works for: the actor whose handler runs, and the traced request that it is a part of.

Both are in one variable, because every message reads them.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cell import Cell
    from .tracing import Trace


class Place:
    """Where a task is: in the actor of this address (empty outside of one), and in this trace."""

    __slots__ = ("address", "trace")

    def __init__(self, address: str, trace: Trace | None) -> None:
        self.address = address
        self.trace = trace


_NOWHERE = Place("", None)
# A cell is itself the place of what its actor does untraced.
current_place: ContextVar[Place | Cell] = ContextVar("current_place", default=_NOWHERE)


def enter_trace(trace: Trace | None) -> Token[Place | Cell]:
    """Be in this trace from here on, in the same actor."""
    return current_place.set(Place(current_place.get().address, trace))
