"""The widgets that pages share: a table that changes in place, dialogs, text that is never interpreted."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text
from textual.app import App, ComposeResult

from callboard.tui.clipboard import sequence
from callboard.tui.widgets.dialog import AskText, Choose, Confirm
from callboard.tui.widgets.live_table import Column, LiveTable
from callboard.tui.widgets.safe_text import plain, plain_line, safe

pytestmark = pytest.mark.anyio


class Board(App[None]):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = LiveTable(
            ["name", Column("count", right=True, show=lambda n: f"{n:,}")], title="Actors", **options
        )
        self.answer: Any = "none yet"

    def compose(self) -> ComposeResult:
        yield self.table

    def ask(self, dialog: Any) -> None:
        async def work() -> None:
            self.answer = await self.push_screen_wait(dialog)

        self.run_worker(work())


def shown(table: LiveTable) -> list[list[str]]:
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


async def test_only_cells_that_differ_are_drawn_again() -> None:
    app = Board()
    async with app.run_test() as pilot:
        app.table.show({"a": ("first", 1), "b": ("second", 2)})
        drawn = app.table.cells_changed
        app.table.show({"a": ("first", 1), "b": ("second", 3)})
        await pilot.pause()
        assert app.table.cells_changed == drawn + 1
        assert shown(app.table) == [["first", "1"], ["second", "3"]]


async def test_a_row_that_was_drawn_before_it_was_measured_is_drawn_again_in_full() -> None:
    app = Board()
    async with app.run_test() as pilot:
        app.table.show({"a": ("somewhat longer than its title", 1_234_567)})
        assert "longer" not in app.table.render_line(1).text  # as the screen may be drawn just then
        await pilot.pause()
        assert app.table.render_line(1).text.split() == ["somewhat", "longer", "than", "its", "title", "1,234,567"]


async def test_the_cursor_stays_with_its_row_when_others_come_and_go_before_it() -> None:
    app = Board(sort=1)
    async with app.run_test() as pilot:
        app.table.show({"a": ("a", 1), "b": ("b", 2), "c": ("c", 3)})
        app.table.select("c")
        await pilot.pause()
        app.table.show({"b": ("b", 2), "c": ("c", 3), "d": ("d", 0), "e": ("e", 2.5)})
        await pilot.pause()
        assert app.table.selected_key == "c"
        assert [row[0] for row in shown(app.table)] == ["d", "b", "e", "c"]
        app.table.show({"c": ("c", -1), "d": ("d", 0)})
        await pilot.pause()
        assert app.table.selected_key == "c"
        assert [row[0] for row in shown(app.table)] == ["c", "d"]


async def test_a_filter_is_typed_and_goes_with_escape() -> None:
    app = Board()
    async with app.run_test() as pilot:
        app.table.focus()
        app.table.show({"a": ("engine.scheduler", 1), "b": ("engine.replica", 2), "c": ("http", 3)})
        await pilot.press("slash", *"engine s", "enter")
        assert [row[0] for row in shown(app.table)] == ["engine.scheduler"]
        assert "1 of 3" in str(app.table.border_title)
        await pilot.press("s")  # no letter of the filter any more
        assert app.table.filter == "engine s"
        await pilot.press("escape")
        assert len(shown(app.table)) == 3


async def test_sorting_goes_through_the_columns_and_backwards() -> None:
    app = Board()
    async with app.run_test() as pilot:
        app.table.focus()
        app.table.show({"a": ("x", 2), "b": ("Y", 10), "c": ("z", None)})
        await pilot.press("s", "s")
        assert [row[1] for row in shown(app.table)] == ["", "2", "10"]
        await pilot.press("S")
        assert [row[1] for row in shown(app.table)] == ["10", "2", ""]


@pytest.mark.parametrize("size", [(20, 5), (80, 24)])
async def test_dialogs_return_what_was_chosen(size: tuple[int, int]) -> None:
    app = Board()
    async with app.run_test(size=size) as pilot:
        for dialog, keys, answer in [
            (Confirm("Stop engine?", "Two requests run."), ["enter"], False),  # the harmless one is in focus
            (Confirm("Stop engine?"), ["y"], True),
            (Confirm("Stop engine?"), ["escape"], False),
            (AskText("Name", "old"), ["end", *"er", "enter"], "older"),
            (AskText("Name"), ["escape"], None),
            (Choose("Which?", ["a", ("b", "the second")]), ["down", "enter"], "b"),
            (Choose("Which?", ["a", "b"], chosen="b"), ["enter"], "b"),
        ]:
            app.ask(dialog)
            await pilot.pause()
            await pilot.press(*keys)
            await pilot.pause()
            assert app.answer == answer


@given(st.text())
def test_no_text_of_others_can_drive_the_terminal(text: str) -> None:
    for shown in (safe(text), plain(text).plain, plain_line(text).plain):
        shown.encode()
        assert not [c for c in shown if (ord(c) < 0x20 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0]
    assert "\n" not in plain_line(text).plain


def test_what_would_be_interpreted_is_visible() -> None:
    assert safe("\x1b[2J\x07") == "␛[2J␇"
    assert safe("a\u202eb") == "a⟨U+202E⟩b"
    assert safe("one\r\ntwo\tthree") == "one\ntwo\tthree"
    assert plain("[red]x[/]").plain == "[red]x[/]"
    assert len(safe("a" + "\u0301" * 500)) < 20
    assert isinstance(plain_line("x" * 500, limit=10), Text)
    assert plain_line("x" * 500, limit=10).plain == "x" * 9 + "…"


def test_a_copy_reaches_the_terminal_through_tmux_and_screen() -> None:
    alone = sequence("text", {})
    assert alone == "\x1b]52;c;dGV4dA==\a"
    assert sequence("text", {"TMUX": "/tmp/x"}) == alone + "\x1bPtmux;\x1b\x1b]52;c;dGV4dA==\a\x1b\\"
    assert all(len(piece) <= 80 for piece in sequence("text" * 99, {"STY": "1"}).split("\x1b\\"))
