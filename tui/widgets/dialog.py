"""What every question over a page is. In a worker: `if await self.app.push_screen_wait(Confirm("Stop it?")): ...`."""

from __future__ import annotations

from typing import Generic, TypeVar

from textual.screen import ModalScreen

from ..styles import beside

Answer = TypeVar("Answer")


class Dialog(ModalScreen[Answer], Generic[Answer]):
    """A box in the middle of the page, which stays visible behind it."""

    DEFAULT_CSS = beside(__file__)
