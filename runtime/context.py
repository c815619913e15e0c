"""What the present task works for: the actor whose handler runs, and the traced request that it is a part of."""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cell import Cell
    from .tracing import Trace

current_cell: contextvars.ContextVar[Cell | None] = contextvars.ContextVar("current_cell", default=None)
current_trace: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("current_trace", default=None)
