"""The tools of the company: what each does and takes, and a form to try it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import anyio
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical, VerticalScroll
from textual.widgets import Static, TabbedContent, TabPane

from ...runtime.errors import CallboardError
from ...schemas.tool import ListTools, OpenTool, ToolInfo
from ..copying import Copied, text_of
from ..ensure import ask_or_start
from ..session import Session, as_line
from ..styles import beside
from ..tool_call import call_tool, json_object, save
from ..widgets.ask_text import AskText
from ..widgets.call_text import readable
from ..widgets.confirm import Confirm
from ..widgets.live_table import Cell, Column, LiveTable
from ..widgets.safe_text import plain
from ..widgets.schema_form import FormInvalid, SchemaForm
from ..widgets.tool_result import ToolResultView
from .base import Page

TOOLS, KIND = "tools", "tool.directory"
LIST_EVERY_S = 5.0
# Starting a set of tools imports its modules.
OPEN_TIMEOUT_S = 150.0
_CALL = "call"


class ToolsPage(Page):
    HELP = """
## Tools

`t` makes a form of the tool under the cursor and ctrl+s calls it. `w` writes the files of a result, `c` copies what
is shown, ctrl+x gives up a call.
"""
    NAME = "tools"
    TITLE = "Tools"
    KEY = "f10"
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("t", "try_it", "Try it"),
        Binding("ctrl+x", "stop", "Give up the call"),
        Binding("w", "write", "Write files"),
        Binding("c", "copy", "Copy", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.tools: dict[str, ToolInfo] = {}
        self._formed = ""

    def body(self) -> ComposeResult:
        with Container(id="tools"):
            yield LiveTable(
                [Column("tool"), Column("risk"), Column("where"), Column("what it does")], title="tools", id="list"
            )
            with Vertical(id="about"), TabbedContent(id="tabs"):
                with TabPane("About", id="tab-about"), VerticalScroll():
                    yield Static(id="about-text")
                with TabPane("Try it", id="tab-try"):
                    yield Container(id="form-place")
                with TabPane("Result", id="tab-result"):
                    yield ToolResultView()

    async def opened(self, session: Session) -> None:
        self.query_one(LiveTable).focus()
        self.every(LIST_EVERY_S, self._list)

    async def _list(self) -> None:
        found = await ask_or_start(self.session, TOOLS, KIND, ListTools())
        self.tools = {_key(info): info for info in found.tools}
        self.query_one(LiveTable).show({key: _row(key, info) for key, info in self.tools.items()})
        self._show_chosen()

    # What is shown

    @property
    def chosen(self) -> ToolInfo | None:
        return self.tools.get(self.query_one(LiveTable).selected_key)

    @on(LiveTable.Chosen)
    def _on_chosen(self, event: LiveTable.Chosen) -> None:
        event.stop()
        self._show_chosen()
        self.query_one("#tabs", TabbedContent).active = "tab-about"

    def _show_chosen(self) -> None:
        info = self.chosen
        self.query_one("#about-text", Static).update(about(info) if info is not None else "")

    def copied(self) -> Copied | None:
        """The result, where that tab is open, else what is said of the tool."""
        if self.query_one("#tabs", TabbedContent).active == "tab-result":
            return Copied(text_of(self.query_one(ToolResultView)), "the result")
        return Copied(text_of(self.query_one("#about-text")), "what it does") if self.chosen is not None else None

    # Trying it

    async def action_try_it(self) -> None:
        """A form made from the tool's schema; ctrl+s calls it."""
        info = self.chosen
        if info is None:
            return
        wanted = f"{_key(info)} {info.input_schema}"
        if self._formed != wanted:
            self._formed = wanted
            place = self.query_one("#form-place", Container)
            await place.remove_children()
            await place.mount(SchemaForm(json_object(info.input_schema)))
        self.query_one("#tabs", TabbedContent).active = "tab-try"
        self.call_after_refresh(self._focus_form)

    def _focus_form(self) -> None:
        form = self.query(SchemaForm)
        if form:
            form.first().focus_first()

    @on(SchemaForm.Changed)
    def _form_changed(self, event: SchemaForm.Changed) -> None:
        event.stop()

    @on(SchemaForm.Submitted)
    def _submitted(self, event: SchemaForm.Submitted) -> None:
        event.stop()
        info = self.chosen
        if info is None:
            return
        try:
            values = event.form.values()
        except FormInvalid as error:
            self.say(as_line(error), error=True)
            return
        self.run_worker(self._call(info, values), group=_CALL, exclusive=True)

    async def _call(self, info: ToolInfo, values: dict[str, Any]) -> None:
        if info.annotations.destructive and not info.annotations.read_only:
            question = f"Call {info.name}? It may change or destroy things."
            if not await self.app.push_screen_wait(Confirm(question, str(values), yes="Call it")):
                return
        view = self.query_one(ToolResultView)
        self.query_one("#tabs", TabbedContent).active = "tab-result"
        view.clear(f"calling {info.name} …")
        view.focus()
        self.say(f"calling {info.name} …")
        try:
            name = f"{info.name}@{info.version}" if info.version else info.name
            opened = await self.session.ask(TOOLS, OpenTool(name), OPEN_TIMEOUT_S)
            result, received = await call_tool(self.session, opened, values, view.hear)
        except CallboardError as error:
            view.fail(as_line(error))
            self.say(str(error), error=True)
            return
        view.show(result, received)
        self.say(f"{info.name} answered")

    def action_stop(self) -> None:
        """Give up the call under way: the tool is told."""
        if self.workers.cancel_group(self, _CALL):
            self.query_one(ToolResultView).fail("given up")
            self.say("given up")

    def action_write(self) -> None:
        self.run(self._write())

    async def _write(self) -> None:
        received = self.query_one(ToolResultView).received
        if not received:
            self.say("the last result has no files")
            return
        where = await self.app.push_screen_wait(AskText("Into which folder?", str(Path.cwd())))
        if not where:
            return
        try:
            folder = await anyio.Path(where).expanduser()
            paths = [await anyio.to_thread.run_sync(save, one, Path(folder)) for one in received]
        except OSError as error:
            self.say(f"cannot be written: {error}", error=True)
            return
        self.say("written: " + ", ".join(map(str, paths)))


def about(info: ToolInfo) -> Text:
    text = plain(info.name, "bold")
    if info.version:
        text.append_text(plain(f"  version {info.version}", "dim"))
    text.append("\n").append_text(plain(info.description)).append("\n\n")
    where = info.address or "not running; it is started when it is called"
    rows = {
        "where": where,
        "may": risk(info),
        "limits": f"{info.timeout:g} s a call, {info.concurrency} at once",
        "tags": ", ".join(info.tags),
    }
    for name, value in rows.items():
        if value:
            text.append(f"{name:8}", "dim").append_text(plain(value)).append("\n")
    for title, schema in (("takes", info.input_schema), ("gives", info.output_schema)):
        text.append(f"\n{title}\n", "underline").append_text(readable(schema or "{}")).append("\n")
    return text


def risk(info: ToolInfo) -> str:
    """What it may do, as its annotations say."""
    notes = info.annotations
    if notes.read_only:
        words = ["reads only"]
    else:
        words = ["may destroy" if notes.destructive else "adds"] + (["repeatable"] if notes.idempotent else [])
    return ", ".join([*words, *(["outside world"] if notes.open_world else [])])


def _row(key: str, info: ToolInfo) -> list[Cell]:
    style = "" if info.annotations.read_only else "yellow" if not info.annotations.destructive else "red"
    return [key, Text(risk(info), style), info.address or "-", info.description.partition("\n")[0]]


def _key(info: ToolInfo) -> str:
    return f"{info.name}@{info.version}" if info.version else info.name
