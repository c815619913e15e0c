"""The app: its pages, the one session that they share, the palette, and the keys that hold everywhere."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.worker import Worker

from ..runtime.errors import CallboardError, CredentialsRefused, NotReachable
from . import clipboard, themes
from .bindings import known_names, modules_with_bindings
from .keys import TuiSettings, shared_keys, unknown_names
from .pages import PAGES, page_class, page_names
from .session import Access, NotConnected, Session, as_line
from .widgets.tab_bar import TabBar

if TYPE_CHECKING:
    from textual.driver import Driver

    from .recording import Recorder
    from .screens.base import Page
    from .waiting import Waiting


def _page_bindings() -> list[BindingType]:
    # Alt or ctrl and a digit arrive from terminals that report keys in full (the protocol of kitty).
    return [
        Binding(
            f"{entry.key},alt+{place},ctrl+{place}",
            f"page({name!r})",
            entry.title,
            show=False,
            priority=True,
            id=f"app.{name}",
        )
        for place, (name, entry) in enumerate(PAGES.items(), 1)
    ]


# Classes that a page has by its size; rules such as `ChatPage.-narrow #sidebar` go by them.
_WIDTHS = [(0, "-narrow"), (80, "-normal"), (120, "-wide")]
# There is a server, so another would not help.
_NOT_MISSING = (CredentialsRefused, NotConnected)
LEAVE_TIMEOUT_S = 3.0
_HEIGHTS = [(0, "-tiny"), (10, "-low"), (20, "-tall")]


class CallboardApp(App[None]):
    """A client of the bus like any other. `start` is the page to begin with."""

    TITLE = "Callboard"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1", "help", "Help", id="app.help", priority=True),
        *_page_bindings(),
        Binding("ctrl+q", "quit", "Quit", id="app.quit", priority=True, show=False),
        Binding("ctrl+p", "command_palette", "Palette", id="app.palette", priority=True, show=False),
        Binding("ctrl+r", "reconnect", "Reconnect", id="app.reconnect", show=False),
    ]

    def __init__(
        self, access: Access, settings: TuiSettings | None = None, *, start: str = "", record: Recorder | None = None
    ) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = _WIDTHS
        self.VERTICAL_BREAKPOINTS = _HEIGHTS
        self.access = access
        self.own_settings = settings or TuiSettings()
        self.session: Session | None = None
        self.waiting: Waiting | None = None
        self.page_names = page_names()
        # What the tabs show beside a page's title: how many approvals wait, say.
        self.badges: dict[str, int] = {}
        self._record = record
        self._offered = False
        self._has_page = False
        self._early: list[events.Key] = []
        self._keeping: Worker[None] | None = None
        self._start = start or self.page_names[0]
        themes.use(self, self.own_settings.theme)  # pyright: ignore[reportArgumentType]
        self.set_keymap(self.own_settings.keys)

    async def on_mount(self) -> None:
        self.session = Session(self.access)
        self.session.on_change.append(self._session_changed)
        # After the first paint: a page's widgets and the bus's libraries take as long to load as Textual does.
        self.call_after_refresh(self._begin)

    def compose(self) -> ComposeResult:
        """What is seen first, for a moment."""
        yield TabBar(self._start)

    async def _begin(self) -> None:
        await self.show_page(self._start)
        early, self._early = self._early, []
        for event in early:
            self.post_message(event)
        if self.own_settings.keys:
            self.run_worker(self._check_keys(), group="keys")
        self.call_after_refresh(self._connect)

    def _connect(self) -> None:
        assert self.session is not None
        from .waiting import Waiting

        self.waiting = Waiting(self, self.session)
        self.run_worker(self.waiting.run(), name="waiting", group="session")
        self._keeping = self.run_worker(self.session.run(), name="session", group="session")

    async def _shutdown(self) -> None:
        """What follows the bus ends while its widgets are still there, and the bus hears that we go."""
        if self.page is not None:
            await self.page.hidden()
        if self._keeping is not None:
            self._keeping.cancel()
            if self._keeping._task is not None:
                await asyncio.wait([self._keeping._task], timeout=LEAVE_TIMEOUT_S)
        await super()._shutdown()
        if self._record is not None:
            self._record.close()

    # Recording

    def _build_driver(self, *args: Any, **options: Any) -> Driver:
        driver = super()._build_driver(*args, **options)
        if (record := self._record) is not None:
            write = driver.write

            def write_both(data: str) -> None:
                record.output(data)
                write(data)

            driver.write = write_both
        return driver

    async def on_event(self, event: events.Event) -> None:
        if self._record is not None and not event.is_forwarded:
            if isinstance(event, events.Key):
                self._record.key(event.key)
            elif isinstance(event, events.Resize):
                self._record.resized(event.size.width, event.size.height)
        if isinstance(event, events.Key) and not self._has_page:
            self._early.append(event)  # whoever types at once means the page
            return
        await super().on_event(event)

    # Pages

    @property
    def page(self) -> Page | None:
        """The page that is shown, whatever lies over it."""
        from .screens.base import Page

        stack = self.get_screen_stack()
        return stack[0] if stack and isinstance(stack[0], Page) else None

    async def show_page(self, name: str) -> None:
        """Make a page visible; it is made when that happens for the first time."""
        if name == self.current_mode or name not in self.page_names:
            return
        if name not in self._modes:
            self.add_mode(name, page_class(name))
        before = self.page
        await self.switch_mode(name)
        if before is not None:
            await before.hidden()
        page = self.page
        if page is not None:
            self._has_page = True
            if page.focused is None and page.AUTO_FOCUS:
                # Now, not by a message behind the first keys.
                page.set_focus(next((widget for widget in page.query(page.AUTO_FOCUS) if widget.focusable), None))
            await page.shown()

    async def _check_keys(self) -> None:
        """Names of the person that no binding has, and keys that two have, are said. Only now, since to know all names,
        every page is imported; one module at a time, so that keys come first."""
        for module in modules_with_bindings():
            importlib.import_module(module)
            await asyncio.sleep(0)
        keys = self.own_settings.keys
        for line in (*unknown_names(keys, known_names()), *shared_keys(keys)):
            self.notify(line, severity="warning", markup=False)

    def set_badge(self, page: str, count: int) -> None:
        """What the tabs show beside a page's title on every page; 0 takes it away."""
        if self.badges.get(page, 0) != count:
            self.badges[page] = count
            if self.page is not None:
                self.page.chrome()

    def _session_changed(self) -> None:
        if self.page is not None and self.is_running:
            self.run_worker(self.page.settle(), group="settle")
        session = self.session
        if session is not None and session.trouble is not None and not self._offered:
            self._offered = True
            if self._may_start(session.trouble):
                self.run_worker(self._offer_daemon(), group="daemon")

    # The daemon

    def _may_start(self, trouble: CallboardError) -> bool:
        """Whether it is a daemon of this machine that is missing."""
        return not self.access.nats and isinstance(trouble, NotReachable) and not isinstance(trouble, _NOT_MISSING)

    async def _offer_daemon(self) -> None:
        assert self.session is not None
        from .widgets.confirm import Confirm

        question = "No daemon runs. Start one?"
        detail = f"{self.session.trouble}. It stays when this app is closed; `callboard down` stops it."
        if await self.push_screen_wait(Confirm(question, detail, yes="Start")):
            await self._start_daemon()

    async def _start_daemon(self) -> None:
        from .starting import start_daemon

        assert self.session is not None
        self._say("the daemon is being started \u2026")
        try:
            await start_daemon(self.access)
        except CallboardError as error:
            self._say(as_line(error), error=True)
            return
        self._say("the daemon is up")
        self.session.try_now()

    def _say(self, text: str, *, error: bool = False) -> None:
        if self.page is not None:
            self.page.say(text, error=error)

    def action_start_daemon(self) -> None:
        """Start it now: for one who said no before."""
        if self.session is not None and not self.session.connected:
            self.run_worker(self._start_daemon(), group="daemon", exclusive=True)

    # Actions

    async def action_page(self, name: str) -> None:
        await self.show_page(name)

    def action_help(self) -> None:
        """Keys and help of what is in focus, at the side."""
        if self.screen.query("HelpPanel"):
            self.action_hide_help_panel()
        else:
            self.action_show_help_panel()

    def action_reconnect(self) -> None:
        if self.session is not None:
            self.session.try_now()

    def copy_to_clipboard(self, text: str) -> None:
        clipboard.copy(self, text)  # pyright: ignore[reportArgumentType]

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every page, every action of what is shown, and what Textual has."""
        from .palette import commands_of

        for name in self.page_names:
            entry = PAGES[name]
            yield SystemCommand(f"{entry.title}", f"Go to the page ({entry.key.upper()})", self._going_to(name))
        yield from commands_of(self, screen)
        if self.session is not None and not self.session.connected and not self.access.nats:
            yield SystemCommand("Start the daemon", "callboard up --detach", self.action_start_daemon)
        yield SystemCommand("Reconnect", "Look for the bus now", self.action_reconnect)
        yield from super().get_system_commands(screen)

    def _going_to(self, name: str) -> Callable[[], Awaitable[None]]:
        async def go() -> None:
            await self.show_page(name)

        return go
