"""The page of tools on real tools in a process of their own: what they take, the form made of it, what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from textual.widgets import Checkbox, Input, Select, Static, TabbedContent, TextArea
from tui_support import Daemon, Eventually, OpenApp, Picture, Running
from work_company import desk

from callboard.schemas.tool import ListTools, OfferTools
from callboard.tui.widgets.ask_text import AskText
from callboard.tui.widgets.confirm import Confirm
from callboard.tui.widgets.live_table import LiveTable
from callboard.tui.widgets.schema_form import SchemaForm
from callboard.tui.widgets.tool_result import ToolResultView

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module", autouse=True)
def tools(daemon: Daemon, notes: Path) -> Iterator[None]:
    with desk(daemon, notes):

        async def start() -> None:
            async with daemon.connect() as bus:
                await bus.spawn("tool.directory", name="tools")
                await bus.actor("tools").ask(OfferTools("desk"))
                await bus.actor("tools").ask(ListTools(), timeout=60)  # what is announced is described once

        anyio.run(start)
        yield


async def choose(it: Running, eventually: Eventually, tool: str) -> None:
    table = it.page.query_one(LiveTable)
    await eventually(lambda: tool in table.rows_shown)
    table.select(tool)
    await eventually(lambda: it.page.chosen is not None and it.page.chosen.name == tool)


async def fill(it: Running, eventually: Eventually, tool: str) -> SchemaForm:
    await choose(it, eventually, tool)
    await it.pilot.press("t")
    await eventually(lambda: it.page.query_one("#tabs", TabbedContent).active == "tab-try")
    await it.pilot.pause()
    return it.page.query_one(SchemaForm)


def result(it: Running) -> str:
    return str(it.page.query_one(ToolResultView).query_one("#result-text", Static).content)


async def test_tools_are_listed_with_what_they_may_do_and_take(open_app: OpenApp, eventually: Eventually) -> None:
    async with open_app("tools") as it:
        await choose(it, eventually, "desk.write")
        for part in ("Write a note anew.", "may destroy", '"content"', "60 s a call"):
            await eventually(lambda part=part: part in it.screen_text())
        await it.pilot.press("c")
        assert "Write a note anew." in it.app.clipboard
        await it.pilot.press(*"/echo")
        await eventually(lambda: it.page.query_one(LiveTable).row_count == 1)


async def test_a_form_has_a_field_of_the_right_kind_for_each_argument(
    open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("tools") as it:
        form = await fill(it, eventually, "desk.echo")
        kinds = {name: type(form._widgets[name]) for name in form.fields}
        assert kinds == {
            "text": Input, "number": Input, "share": Input, "mood": Select, "words": TextArea, "loud": Checkbox,
        }  # fmt: skip
        form.set_text("text", "hi\x1b[31m")
        form.set_text("number", "three")
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "number: 'three' is no integer" in it.screen_text())
        assert it.app.focused is form._widgets["number"]
        form.set_text("number", "3")
        form.set_text("words", "red\nold tree")
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "old tree" in result(it))
        for part in ('"number": 3', '"share": 0.5', '"mood": "good"', '"red"'):
            assert part in result(it)
        assert "\x1b" not in it.screen_text()
        await it.pilot.press("c")  # the result has the focus; what controls a terminal is no part of the copy
        assert "old tree" in it.app.clipboard
        assert "\x1b" not in it.app.clipboard


async def test_a_picture_is_drawn_and_written_to_a_file(
    open_app: OpenApp, eventually: Eventually, tmp_path: Path
) -> None:
    async with open_app("tools") as it:
        await fill(it, eventually, "desk.picture")
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "▀" * 16 in it.screen_text())
        await it.pilot.press("w")
        await eventually(lambda: isinstance(it.app.screen, AskText))
        it.app.screen.query_one(Input).value = str(tmp_path)
        await it.pilot.press("enter")
        await eventually(lambda: (tmp_path / "flag.png").exists())
        assert (tmp_path / "flag.png").read_bytes().startswith(b"\x89PNG")


async def test_a_file_of_this_machine_is_sent(open_app: OpenApp, eventually: Eventually, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(b"x" * 300_000)
    async with open_app("tools") as it:
        form = await fill(it, eventually, "desk.weigh")
        form.set_text("file", str(tmp_path / "nothing"))
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "there is no file" in it.screen_text())
        form.set_text("file", str(tmp_path / "large.bin"))
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "300000" in result(it))


async def test_what_may_destroy_is_asked_first_and_an_error_is_shown(
    open_app: OpenApp, eventually: Eventually, notes: Path
) -> None:
    async with open_app("tools") as it:
        form = await fill(it, eventually, "desk.write")
        form.set_text("path", "new.txt")
        form.set_text("content", "words")
        await it.pilot.press("ctrl+s")
        await eventually(lambda: isinstance(it.app.screen, Confirm))
        await it.pilot.press("n")
        assert not (notes / "new.txt").exists()
        await it.pilot.press("ctrl+s")
        await eventually(lambda: isinstance(it.app.screen, Confirm))
        await it.pilot.press("y")
        await eventually(lambda: "new.txt is written" in result(it))
        assert (notes / "new.txt").read_text() == "words"
        form = await fill(it, eventually, "desk.read")
        form.set_text("path", "nowhere.txt")
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "nowhere.txt" in result(it) and "read" in it.screen_text())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_the_page_looks_as_it_did(
    open_app: OpenApp, eventually: Eventually, picture: Picture, size: tuple[int, int]
) -> None:
    async with open_app("tools", size=size) as it:
        table = it.page.query_one(LiveTable)
        await eventually(lambda: "desk.echo" in table.rows_shown)
        table.filter = "desk."
        form = await fill(it, eventually, "desk.echo")
        form.set_text("text", "hello")
        await it.pilot.pause()
        await picture(it.app, "tools")


async def test_the_smallest_terminal_shows_the_list(open_app: OpenApp, eventually: Eventually) -> None:
    async with open_app("tools", size=(20, 5)) as it:
        await eventually(lambda: "desk" in it.screen_text() or "arxiv" in it.screen_text())
        await it.pilot.press("t", "tab", "escape")
        assert it.screen_text()
