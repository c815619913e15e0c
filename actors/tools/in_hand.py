"""The calls that a set of tools has in hand, so that all of them can be ended at once with one error."""

from __future__ import annotations

import asyncio
from typing import Any

from ...runtime.errors import CallboardError, from_info


class InHand:
    """A call adds its task to `tasks` and takes it out. Cancelled while there is a `verdict`, it ends in that."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self.verdict: CallboardError | None = None

    def ending(self) -> CallboardError:
        """The verdict, for one call: an exception that several raise would collect all their tracebacks."""
        assert self.verdict is not None
        return from_info(self.verdict.to_info())

    def end_all(self, verdict: CallboardError) -> None:
        self.verdict = verdict
        for task in tuple(self.tasks):
            task.cancel()

    async def none_left(self, seconds: float) -> None:
        """Returns when no call is in hand any more, or the time is over."""
        if self.tasks:
            await asyncio.wait(tuple(self.tasks), timeout=seconds)
