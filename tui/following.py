"""What a page follows: a stream each, by a worker of its own, once at a time, until the page is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ..runtime.errors import ActorStopped, CallboardError, NoSuchActor
from .session import as_line

if TYPE_CHECKING:
    from .screens.base import Page

_GROUP = "follow"
AGAIN_S = 1.0


class Following:
    """`hear(name)` runs to the end of what is followed. Its errors are said on the page, the same one of the same name
    once: the page looks at its list now and then and follows again. That its actor is away is no error. `changed` is
    called when it has ended."""

    def __init__(self, page: Page, hear: Callable[[str], Awaitable[None]], changed: Callable[[], None]) -> None:
        self._page, self._hear, self._changed = page, hear, changed
        self._names: set[str] = set()
        self._failing: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def follow(self, name: str) -> None:
        if name not in self._names:
            self._names.add(name)
            self._page.run_worker(self._run(name), group=_GROUP)

    def end(self) -> None:
        """The page is closed."""
        self._page.workers.cancel_group(self._page, _GROUP)
        self._names.clear()
        self._failing.clear()

    async def _run(self, name: str) -> None:
        try:
            await self._hear(name)
            self._failing.pop(name, None)
        except (ActorStopped, NoSuchActor):
            await asyncio.sleep(AGAIN_S)
        except CallboardError as error:
            line = as_line(error)
            if line != self._failing.get(name):
                self._failing[name] = line
                self._page.say(line, error=True)
        finally:
            self._names.discard(name)
        self._changed()
