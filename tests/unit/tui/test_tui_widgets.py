"""The widgets that pages share: a table that changes in place, dialogs, text that is never interpreted."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.widgets import DataTable

from callboard.tui.clipboard import sequence
from callboard.tui.coalesce import AT_MOST_EVERY_S, Coalesced
from callboard.tui.widgets.ask_text import AskText
from callboard.tui.widgets.choose import Choose
from callboard.tui.widgets.confirm import Confirm
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


async def test_a_column_is_as_wide_as_its_cells_now_and_is_measured_only_when_one_has_another_length() -> None:
    app = Board()
    async with app.run_test(size=(60, 12)) as pilot:
        measured: list[object] = []
        measure = app.table._update_column_widths

        def noting(updated_cells: set[Any]) -> None:
            measured.append(updated_cells)
            measure(updated_cells)

        app.table._update_column_widths = noting
        for count, width in ((1, 5), (1_234_567, 9), (7_654_321, 9), (22, 5)):
            app.table.show({"a": ("first", count), "b": ("second", 3)})
            await pilot.pause()
            assert app.table.ordered_columns[1].content_width == width
            assert app.table.render_line(1).text.split() == ["first", f"{count:,}"]
        before = len(measured)
        app.table.show({"a": ("first", 33), "b": ("second", 4)})
        await pilot.pause()
        assert app.table.render_line(1).text.split() == ["first", "33"]
        assert len(measured) == before


async def test_cells_that_did_not_change_are_not_rendered_again_until_the_theme_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[tuple[int, int]] = []
    render = DataTable._render_cell

    def counted(self: DataTable[Text], row: int, column: int, *rest: Any) -> Any:
        rendered.append((row, column))
        return render(self, row, column, *rest)

    monkeypatch.setattr(DataTable, "_render_cell", counted)
    app = Board()
    async with app.run_test(size=(60, 12)) as pilot:
        app.table.show({f"{n}": (f"row {n}", n) for n in range(5)})
        await pilot.pause()
        rendered.clear()
        app.table.show({f"{n}": (f"row {n}", n if n != 3 else 7) for n in range(5)})
        await pilot.pause()
        assert {place for place in rendered if place[0] >= 0} == {(3, 1)}
        assert app.table.render_line(4).text.split() == ["row", "3", "7"]
        before = app.table.render_line(4)
        app.theme = "textual-light"
        await pilot.pause()
        assert app.table.render_line(4) != before


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


async def test_the_mouse_puts_the_cursor_on_a_row_sorts_by_a_title_and_scrolls() -> None:
    app = Board()
    async with app.run_test(size=(40, 10)) as pilot:
        app.table.show({f"{n:02}": (f"row {n:02}", -n) for n in range(50)})
        await pilot.pause()
        await pilot.click(LiveTable, offset=(3, 4))
        assert app.table.selected_key == "02"
        await pilot.click(LiveTable, offset=(13, 1))
        assert [row[1] for row in shown(app.table)][:2] == ["-49", "-48"]
        await pilot.click(LiveTable, offset=(13, 1))
        assert [row[1] for row in shown(app.table)][:2] == ["0", "-1"]
        before = app.table.scroll_y
        for _ in range(3):
            await pilot._post_mouse_events([events.MouseScrollDown], LiveTable, (3, 4), button=0)
        await pilot.pause()
        assert app.table.scroll_y > before
        assert app.table.selected_key == "02"  # looking round moves no cursor


async def test_columns_stand_below_each_other_whatever_the_width_of_their_characters() -> None:
    app = Board()
    names = ["plain", "日本語の名前", "e\u0301\u0301 combined", "한국어", "tab\tand\x1b[31m", "👍 thumb"]
    async with app.run_test(size=(60, 12)) as pilot:
        app.table.show({name: (name, 10 * n + 5) for n, name in enumerate(names)})
        await pilot.pause()
        lines = [app.table.render_line(y).text.rstrip() for y in range(1, 1 + len(names))]
        assert [line.split()[-1] for line in lines] == ["5", "15", "25", "35", "45", "55"]
        assert len({cell_len(line) for line in lines}) == 1, lines


async def test_what_changes_all_the_time_is_drawn_ten_times_a_second_and_the_last_change_too() -> None:
    app = Board()
    loop = asyncio.get_running_loop()
    value, drawn = 0, []
    async with app.run_test():
        news = Coalesced(app.table, lambda: drawn.append((loop.time(), value)))
        until = loop.time() + 6.5 * AT_MOST_EVERY_S
        while loop.time() < until:
            value += 1
            news.poke()
            await asyncio.sleep(0)
        while drawn[-1][1] != value:
            await asyncio.sleep(0)
    assert value > 100
    assert all(later - earlier > 0.9 * AT_MOST_EVERY_S for (earlier, _), (later, _) in itertools.pairwise(drawn))


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
