"""Keys by name, and the palette: each binding of the app, its pages and widgets has a name, and is offered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from textual.command import CommandList, CommandPalette
from tui_support import Eventually, OpenApp, Running

from callboard.tui.bindings import bindings_of, classes_with_bindings, known_names
from callboard.tui.chat.conversation import Conversation
from callboard.tui.chat.history import History
from callboard.tui.keys import TuiSettings, shared_keys, unknown_names
from callboard.tui.widgets.ask_text import AskText
from callboard.tui.widgets.curves import Curves
from callboard.tui.widgets.live_table import LiveTable

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[3] / "docs" / "tui.md"


def test_each_binding_has_a_name_and_says_what_it_does() -> None:
    for cls in classes_with_bindings():
        for name, bindings in bindings_of(cls).items():
            assert re.fullmatch(r"[a-z]+\.[a-z_]+", name), (cls, bindings)
            assert bindings[0].description, (cls, name)


def test_the_documentation_lists_every_name() -> None:
    rows = re.findall(r"^\| `(\w+)\.` \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    listed = [f"{owner}.{name}" for owner, names in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(listed) == known_names()


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("app.helb", "app.help"),
        ("chta.stop", "chat.stop"),
        ("chat.new_lin", "chat.new_line"),
        ("table.fliter", "table.filter"),
        ("tabel.sort", "table.sort"),
        ("dialog.yess", "dialog.yes"),
        ("curves.logg", "curves.log"),
        ("session.rename", "sessions.rename"),
    ],
)
def test_a_name_that_nothing_has_is_said_with_the_nearest(wrong: str, meant: str) -> None:
    assert unknown_names([wrong, meant], known_names()) == [
        f"[tui.keys]: nothing is called '{wrong}'; did you mean {meant}?"
    ]


def test_a_key_that_two_names_have_is_said_where_only_one_can_answer() -> None:
    assert shared_keys({"chat.retry": "ctrl+t, f12", "chat.edit": "f11,ctrl+t"}) == [
        "[tui.keys]: 'chat.retry' and 'chat.edit' both have ctrl+t; only one of them answers to it"
    ]
    (line,) = shared_keys({"company.stop": "f12", "app.help": "f12"})  # the app's hold on every page
    assert "'company.stop' and 'app.help' both have f12" in line
    assert len(shared_keys({"bus.copy": "y", "bus.clear": "y", "bus.pause": "y"})) == 3
    # On two pages, of two widgets, or twice for one name: each is there alone.
    assert not shared_keys({"company.stop": "f12", "models.cancel": "f12", "tree.up": "f12", "chat.new": "f9,f9"})


async def test_keys_of_the_app_of_a_page_and_of_a_widget_are_remapped(
    open_app: OpenApp, eventually: Eventually
) -> None:
    keys = {
        "app.help": "ctrl+g",
        "company.tree": "f12,ctrl+t",
        "table.filter": "ctrl+f",
        "chat.new_line": "ctrl+y",
        "app.helb": "x",
        "table.fliter": "x",
        "bus.copy": "y",
        "bus.clear": "y",
    }
    async with open_app("company", settings=TuiSettings(keys=keys)) as it:
        await it.pilot.press("f1")
        assert not it.app.screen.query("HelpPanel")
        await it.pilot.press("ctrl+g")
        assert it.app.screen.query("HelpPanel")
        await it.pilot.press("ctrl+g")

        table = next(table for table in it.page.query(LiveTable) if table.has_focus)
        await it.pilot.press("slash", "z")
        assert not table.filter
        await it.pilot.press("ctrl+f", *"nobody", "enter")
        assert table.filter == "nobody"

        tree = it.page.query_one("SupervisionTree")
        await it.pilot.press("t")
        assert not tree.display
        await it.pilot.press("ctrl+t")
        await eventually(lambda: tree.display)

        wrong = [("app.helb", "app.help"), ("table.fliter", "table.filter")]
        for said in (
            *(f"nothing is called '{name}'; did you mean {meant}?" for name, meant in wrong),
            "'bus.copy' and 'bus.clear' both have y",
        ):
            await eventually(lambda said=said: any(said in note.message for note in it.app._notifications))

        await it.pilot.press("f2", "a", "ctrl+j", "b", "ctrl+y", "c")
        await eventually(lambda: it.page.NAME == "chat" and it.page.prompt.text == "ab\nc")


# The palette


async def take(it: Running, eventually: Eventually, title: str) -> None:
    """Choose it from the palette by its name, as a person does."""
    await it.pilot.press("ctrl+p")
    await eventually(lambda: isinstance(it.app.screen, CommandPalette))
    await it.pilot.press(*title.lower())
    found = it.app.screen.query_one(CommandList)
    await eventually(lambda: found.option_count > 0 and title in str(found.get_option_at_index(0).prompt))
    await it.pilot.press("down", "enter")
    await eventually(lambda: not isinstance(it.app.screen, CommandPalette))


def titles(it: Running) -> dict[str, str]:
    """Of what the palette offers, with what it says beside."""
    return {command.title: command.help for command in it.app.get_system_commands(it.app.screen)}


async def test_the_palette_has_every_page_and_the_actions_of_this_one(
    open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("bus", settings=TuiSettings(keys={"bus.clear": "ctrl+x,f12"})) as it:
        offered = titles(it)
        assert {"Chat", "Bus", "Bus: Pause", "Messages: Page up", "Quit", "Theme", "Reconnect"} <= offered.keys()
        assert offered["Bus: Clear"] == "Key: ^x f12  (bus.clear)"
        await take(it, eventually, "Bus: Pause")
        await eventually(lambda: it.page.paused)


async def test_the_palette_has_the_actions_of_the_widgets_that_are_seen(
    open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("training") as it:
        curves = it.page.query_one(Curves)
        assert {"Curves: Smooth", "Curves: Zoom", "Curves: Zoom out", "Curves: Metric", "Table: Sort"} <= titles(
            it
        ).keys()
        await take(it, eventually, "Curves: Log")
        await eventually(lambda: curves.log_scale and curves.has_focus)
        await take(it, eventually, "Table: Filter")
        table = it.page.query_one(LiveTable)
        await eventually(lambda: table.has_focus)
        await it.pilot.press(*"lora", "enter")
        assert table.filter == "lora"
        await it.pilot.press("f4")
        await eventually(lambda: it.page.NAME == "bus")
        assert "Curves: Log" not in titles(it)


async def test_the_palette_has_what_is_done_with_runs(open_app: OpenApp, eventually: Eventually) -> None:
    async with open_app("agents") as it:
        assert {"Agents: Replay", "Agents: Replay on", "Tree: Down"} <= titles(it).keys()
        it.page.moment = 1
        await take(it, eventually, "Agents: As it is now")
        await eventually(lambda: it.page.moment is None)


async def test_the_palette_has_the_list_of_chats_and_the_commands_that_have_no_key(
    open_app: OpenApp, eventually: Eventually, tmp_path: Path
) -> None:
    chats = History(tmp_path / "callboard-data" / "chats")
    conversation = Conversation.new()
    conversation.add("user", "About apples")
    chats.save(conversation)
    (tmp_path / "notes.txt").write_text("the notes")
    async with open_app("chat") as it:
        await eventually(lambda: len(it.page.conversations) == 1)
        commands = {"system", "set", "attach", "detach", "export", "rename", "delete"}
        assert {f"Chat: /{name}" for name in commands} <= titles(it).keys()
        assert "Chat: /retry" not in titles(it)  # it is there with its key

        await it.pilot.press(*"a draft")
        await take(it, eventually, "Chat: /system")
        await eventually(lambda: isinstance(it.app.screen, AskText))
        await it.pilot.press(*"a poet", "enter")
        await eventually(lambda: it.page.conversation.options.system == "a poet")
        await take(it, eventually, "Chat: /attach")
        await eventually(lambda: isinstance(it.app.screen, AskText))
        await it.pilot.press(*str(tmp_path / "notes.txt"), "enter")
        await eventually(lambda: [file.name for file in it.page.attached] == ["notes.txt"])
        await take(it, eventually, "Chat: /detach")
        await eventually(lambda: not it.page.attached)
        assert it.page.prompt.text == "a draft"

        await it.pilot.press("ctrl+b", "down")
        await take(it, eventually, "Sessions: Rename")
        await eventually(lambda: isinstance(it.app.screen, AskText))
        await it.pilot.press("end", *" and pears", "enter")
        await eventually(lambda: chats.load_all()[0][0].title == "About apples and pears")
