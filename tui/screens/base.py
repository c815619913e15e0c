"""What every page is: a screen with the tabs above, its own body, and the line of status and the keys below.

A page lives as long as the app, hidden or not. What follows the bus is begun in `opened` and ends by itself when
the page is hidden or the connection is lost: a page that nobody looks at asks for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding
from textual.containers import Container
from textual.screen import Screen
from textual.widgets import Footer
from textual.worker import Worker

from ...runtime.errors import CallboardError
from ..copying import Copied, row_of
from ..session import Session, as_line
from ..styles import beside
from ..widgets.live_table import LiveTable
from ..widgets.status_line import StatusLine
from ..widgets.tab_bar import TabBar

if TYPE_CHECKING:
    from ..app import CallboardApp

_VISIT = "visit"
_ACTIONS = "actions"


class Page(Screen[None]):
    """A screen of the app. A subclass gives NAME and TITLE, composes in `body`, and overrides `opened` and `closed`.

    Its BINDINGS get the ids `NAME.action` by which a person may remap them, and are in the command palette.
    """

    DEFAULT_CSS = beside(__file__)
    NAME: ClassVar[str] = ""
    KEY: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        own = cls.__dict__.get("BINDINGS")
        if own and cls.NAME:
            cls.BINDINGS = [_named(cls.NAME, binding) for binding in Binding.make_bindings(own)]
        super().__init_subclass__(**options)

    def __init__(self) -> None:
        super().__init__()
        self.is_open = False
        self._visible = False
        self._turn = asyncio.Lock()

    # For subclasses

    def body(self) -> ComposeResult:
        """The widgets of the page."""
        yield from ()

    async def opened(self, session: Session) -> None:
        """Each time the page becomes visible with a connection, and each time the connection comes back under it.

        Runs in a worker that is cancelled when the page is hidden or the connection is lost.
        """

    async def closed(self) -> None:
        """After each `opened`, once its worker has ended."""

    def more_commands(self) -> Iterable[SystemCommand]:
        """What the palette offers beside the bindings of the page and of its widgets."""
        return ()

    def copied(self) -> Copied | None:
        """What `c` copies: the row under the cursor, unless the page knows of something better."""
        table = self.focused
        if not isinstance(table, LiveTable):
            table = next((one for one in self.query(LiveTable) if one.display), None)
        return Copied(row_of(table), "the row") if table is not None else None

    def copy(self, text: str, what: str) -> None:
        """Put it into the clipboard of the person's terminal, and say so."""
        self.app.copy_to_clipboard(text)
        self.say(f"copied {what} ({len(text):,} characters)")

    def action_copy(self) -> None:
        found = self.copied()
        if found is None or not found.text.strip():
            self.say("there is nothing to copy here")
        else:
            self.copy(*found)

    def every(self, seconds: float, refresh: Callable[[], Awaitable[None]]) -> None:
        """Within `opened`: refresh now, and then every so often, while the page is visible and connected.

        An error becomes a line of the page's status, and it goes on.
        """
        self.run_worker(partial(self._repeat, seconds, refresh), group=_VISIT)

    def say(self, text: str, *, error: bool = False) -> None:
        """One line at the bottom; an error is a notification too, until it goes by itself."""
        for line in self.query(StatusLine):
            line.say(text, error)
        if error:
            self.notify(text, severity="error", markup=False)

    def run(self, what: Coroutine[Any, Any, Any], *, doing: str = "") -> Worker[Any]:
        """Carry out an action beside the rest, whether the page stays visible or not. `doing` is said meanwhile.

        A CallboardError is said, with its hint.
        """
        return self.run_worker(self._act(what, doing), group=_ACTIONS)

    @property
    def session(self) -> Session:
        session = self.board.session
        assert session is not None, "the app has its session before it shows a page"
        return session

    @property
    def board(self) -> CallboardApp:
        """The app, by its own type."""
        return cast("CallboardApp", self.app)

    # What the app does with it

    def compose(self) -> ComposeResult:
        yield TabBar(self.NAME)
        with Container(id="body"):
            yield from self.body()
        yield StatusLine()
        yield Footer(show_command_palette=False)

    async def shown(self) -> None:
        """The page is what the person sees now."""
        self._visible = True
        await self.settle()

    async def hidden(self) -> None:
        self._visible = False
        await self.settle()

    async def settle(self) -> None:
        """Open or close, as visibility and connection now are."""
        self.chrome()
        async with self._turn:
            session = self.board.session
            wanted = self._visible and session is not None and session.connected
            if self.is_open and not (wanted and self._losses == session.losses):  # pyright: ignore[reportOptionalMemberAccess]
                await self._close()
            if wanted and not self.is_open and session is not None:
                self.is_open = True
                self._losses = session.losses
                self.run_worker(partial(self._visit, session), group=_VISIT)

    async def reopen(self) -> None:
        """Close and open again, where it is open: what it follows is another thing now."""
        async with self._turn:
            await self._close()
        await self.settle()

    async def _close(self) -> None:
        if self.is_open:
            self.is_open = False
            workers = self.workers.cancel_group(self, _VISIT)
            await asyncio.gather(*(_ended(worker) for worker in workers))
            await self.closed()

    def chrome(self) -> None:
        """Draw the tabs and the line of status as things are now."""
        if self._visible:
            for widget in self.query("TabBar, StatusLine"):
                widget.refresh()

    _losses = 0

    async def _visit(self, session: Session) -> None:
        try:
            await self.opened(session)
        except CallboardError as error:
            self.say(as_line(error), error=True)

    async def _repeat(self, seconds: float, refresh: Callable[[], Awaitable[None]]) -> None:
        failing = ""
        while True:
            try:
                await refresh()
                if failing:
                    failing = ""
                    self.say("")
            except CallboardError as error:
                line = as_line(error)
                if line != failing:  # once is enough: it is tried again all the time
                    failing = line
                    for status in self.query(StatusLine):
                        status.say(line, True)
            await asyncio.sleep(seconds)

    async def _act(self, what: Coroutine[Any, Any, Any], doing: str) -> Any:
        if doing:
            self.say(f"{doing} \u2026")
        try:
            result = await what
        except CallboardError as error:
            self.say(as_line(error), error=True)
            return None
        if doing and (line := self.query(StatusLine).first()).text == f"{doing} \u2026":
            line.say("", False)
        return result


def _named(page: str, binding: Binding) -> Binding:
    action = binding.action.rpartition(".")[2].partition("(")[0]
    return binding if binding.id else replace(binding, id=f"{page}.{action}")


async def _ended(worker: Worker[Any]) -> None:
    if worker._task is not None:
        await asyncio.wait([worker._task])
