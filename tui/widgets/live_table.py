"""A table whose rows change in place: what did not change is not drawn again, and the cursor stays with its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DataTable

from ..styles import beside
from .fitted_table import FittedTable
from .safe_text import plain_line

Cell = str | int | float | bool | Text | None
"""What a row holds: a value to sort and filter by. A column's `show` makes it readable; Text is shown as it is."""

_CELL_LIMIT = 400


@dataclass(frozen=True)
class Column:
    """`show` turns a value into text (default: `str`, nothing for None). Numbers want `right`."""

    title: str
    right: bool = False
    show: Callable[[Any], str | Text] | None = None
    width: int | None = None

    def cell(self, value: Cell) -> Text:
        shown: str | Text
        if isinstance(value, Text):
            return value
        if value is None:
            shown = ""
        else:
            shown = str(value) if self.show is None else self.show(value)
        text = shown if isinstance(shown, Text) else plain_line(shown, limit=_CELL_LIMIT)
        if self.right:
            text.justify = "right"
        return text


class LiveTable(FittedTable):
    """`show(rows)` takes the whole truth by keys, and changes what differs.

    `/` filters: a row stays while each word typed occurs in one of its cells. `s` and a click on a title sort, `S`
    turns the order round. `selected_key` is the row under the cursor.
    """

    HELP = """
## Table

`/` filters as you type: a row stays while each word occurs in it; enter ends typing, escape takes the filter away.
`s` sorts by the next column, `S` turns the order round, and a click on a title sorts too.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", id="table.filter", key_display="/"),
        Binding("s", "sort_next", "Sort", id="table.sort"),
        Binding("S,upper_s", "sort_reverse", "Reverse", show=False, id="table.reverse"),
        Binding("j", "cursor_down", "Down", show=False, id="table.down"),
        Binding("k", "cursor_up", "Up", show=False, id="table.up"),
        Binding("g", "scroll_top", "To the top", show=False, id="table.top"),
        Binding("G,upper_g", "scroll_bottom", "To the end", show=False, id="table.bottom"),
    ]

    class Chosen(Message):
        """The cursor is on another row now; `key` is "" where the table is empty."""

        def __init__(self, table: LiveTable, key: str) -> None:
            super().__init__()
            self.table, self.key = table, key

        @property
        def control(self) -> LiveTable:
            return self.table

    def __init__(
        self, columns: Sequence[Column | str], *, title: str = "", sort: int | None = None, reverse: bool = False,
        id: str | None = None, classes: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(id=id, classes=classes, cursor_type="row", zebra_stripes=False)
        self.columns_shown = [Column(column) if isinstance(column, str) else column for column in columns]
        self._title = title
        self._sort, self._reverse = sort, reverse
        self._filter = ""
        self._typing = False
        self._truth: dict[str, tuple[Cell, ...]] = {}
        self._drawn: dict[str, tuple[Cell, ...]] = {}
        self._order: list[str] = []
        self._chosen = ""
        self.cells_changed = 0  # how many cells were ever drawn anew: what a test counts

    def on_mount(self) -> None:
        for number, column in enumerate(self.columns_shown):
            self.add_column(self._label(number), key=str(number), width=column.width)
        if self._truth:
            self._draw()
        self._say()

    # What is shown

    def show(self, rows: Mapping[str, Sequence[Cell]]) -> None:
        """The rows as they are now, each with a value for each column."""
        self._truth = {key: tuple(cells) for key, cells in rows.items()}
        if self.is_mounted:
            self._draw()

    @property
    def rows_shown(self) -> dict[str, tuple[Cell, ...]]:
        """All rows, those that the filter hides included."""
        return self._truth

    @property
    def selected_key(self) -> str:
        """The key of the row under the cursor, "" where there is none."""
        return self._order[self.cursor_row] if 0 <= self.cursor_row < len(self._order) else ""

    def select(self, key: str) -> None:
        """Put the cursor on that row, if it is shown."""
        if key in self._drawn:
            self.move_cursor(row=self._order.index(key))

    @property
    def filter(self) -> str:
        return self._filter

    @filter.setter
    def filter(self, text: str) -> None:
        self._filter = text
        self._draw()

    def _draw(self) -> None:
        wanted = self._wanted()
        selected, row_before = self.selected_key, self.cursor_row
        with self.app.batch_update():
            gone = [key for key in self._order if key not in wanted]
            if gone and len(gone) == len(self._order):
                self.clear()
                self._drawn.clear()
                self._order.clear()
            for key in gone if self._drawn else ():
                self.remove_row(key)
                del self._drawn[key]
            for key in wanted:
                self._draw_row(key, self._truth[key])
            kept = [key for key in self._order if key in self._drawn]
            added = [key for key in wanted if key not in set(kept)]
            if kept + added != wanted:
                places = {key: place for place, key in enumerate(wanted)}
                self._row_places(places)
            self._order = wanted
            if selected and selected in self._drawn:
                row = wanted.index(selected)
            else:
                row = min(row_before, len(wanted) - 1)
            if wanted and row != self.cursor_row:
                self.move_cursor(row=max(0, row), scroll=False)
        self._say()
        self._tell()

    def _draw_row(self, key: str, cells: tuple[Cell, ...]) -> None:
        before = self._drawn.get(key)
        if before is None:
            self.add_row(*(column.cell(cell) for column, cell in zip(self.columns_shown, cells, strict=True)), key=key)
            self.cells_changed += len(cells)
        elif before != cells:
            for number, (old, new) in enumerate(zip(before, cells, strict=True)):
                if old != new:
                    column = self.columns_shown[number]
                    text = column.cell(new)
                    # To work out a column's width, all of its cells are measured: not for a figure as long as before.
                    wider = column.width is None and text.cell_len != column.cell(old).cell_len
                    self.update_cell(key, str(number), text, update_width=wider)
                    self.cells_changed += 1
        self._drawn[key] = cells

    def _row_places(self, places: dict[str, int]) -> None:
        """Put the rows in that order."""
        keys = {row_key: places[str(row_key.value)] for row_key in self.rows}
        ordered = sorted(keys, key=keys.__getitem__)
        self._row_locations = type(self._row_locations)({key: place for place, key in enumerate(ordered)})
        self.draw_again()

    def _wanted(self) -> list[str]:
        """The keys of the rows to show, in order."""
        words = self._filter.lower().split()
        keys = [key for key, cells in self._truth.items() if not words or self._fits(cells, words)]
        if self._sort is not None:
            column = self._sort
            keys.sort(key=lambda key: _rank(self._truth[key][column]), reverse=self._reverse)
        return keys

    def _fits(self, cells: tuple[Cell, ...], words: list[str]) -> bool:
        text = " ".join(column.cell(cell).plain for column, cell in zip(self.columns_shown, cells, strict=True)).lower()
        return all(word in text for word in words)

    # Sorting and filtering by hand

    def action_sort_next(self) -> None:
        self.sort_by(0 if self._sort is None else (self._sort + 1) % len(self.columns_shown))

    def action_sort_reverse(self) -> None:
        self.sort_by(self._sort or 0, not self._reverse)

    def sort_by(self, column: int, reverse: bool = False) -> None:
        self._sort, self._reverse = column, reverse
        for number in range(len(self.columns_shown)):
            self.ordered_columns[number].label = self._label(number)
        self.draw_again()
        self._draw()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        event.stop()
        self.sort_by(event.column_index, not self._reverse if event.column_index == self._sort else False)

    def action_filter(self) -> None:
        self._typing = True
        self._say()

    def on_key(self, event: events.Key) -> None:
        if not self._typing:
            if event.key == "escape" and self._filter:
                event.stop()
                self.filter = ""
            return
        if event.key == "escape":
            self._typing = False
            self.filter = ""
        elif event.key in ("enter", "tab", "up", "down"):
            self._typing = False
            self._say()
            if event.key != "enter":
                return
        elif event.key == "backspace":
            self.filter = self._filter[:-1]
        elif event.character is not None and event.is_printable:
            self.filter = self._filter + event.character
        else:
            return
        event.stop()
        event.prevent_default()

    def check_consume_key(self, key: str, character: str | None) -> bool:
        return self._typing and character is not None and character.isprintable()

    def on_blur(self) -> None:
        self._typing = False
        self._say()

    # What is said of it

    def _label(self, number: int) -> Text:
        column = self.columns_shown[number]
        mark = ("\u2193" if self._reverse else "\u2191") if number == self._sort else ""
        text = plain_line(column.title + mark)
        text.justify = "right" if column.right else "left"
        return text

    def _say(self) -> None:
        parts = [self._title] if self._title else []
        if self._typing or self._filter:
            parts.append("/" + self._filter + ("\u258f" if self._typing else ""))
            parts.append(f"{len(self._order)} of {len(self._truth)}")
        elif self._truth:
            parts.append(str(len(self._truth)))
        self.border_title = plain_line(" ".join(parts)).markup

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self._tell()

    def _tell(self) -> None:
        if self.selected_key != self._chosen:
            self._chosen = self.selected_key
            self.post_message(self.Chosen(self, self._chosen))


def _rank(value: Cell) -> tuple[int, float, str]:
    """Nothing first, then numbers, then texts as people order them."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, bool | int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value).lower())
