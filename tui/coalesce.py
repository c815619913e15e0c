"""Many reasons to draw, one drawing: what changes often is shown at most ten times a second."""

from __future__ import annotations

from collections.abc import Callable

from textual.message_pump import MessagePump

AT_MOST_EVERY_S = 0.1


class Coalesced:
    """`poke()` as often as there is news; `draw` runs once, a moment after the first of them."""

    def __init__(self, owner: MessagePump, draw: Callable[[], None], seconds: float = AT_MOST_EVERY_S) -> None:
        self._owner = owner
        self._draw = draw
        self._seconds = seconds
        self._waits = False

    def poke(self) -> None:
        if not self._waits:
            self._waits = True
            self._owner.set_timer(self._seconds, self._now)

    def _now(self) -> None:
        self._waits = False
        self._draw()
