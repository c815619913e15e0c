"""A table whose columns are as wide as what is in them, always.

Textual measures new cells when it is idle. Of a row that it drew before that it keeps the picture, in columns that were
as wide as their titles, until something else of the table changes. And it forgets the pictures of all cells when one
changes; here those of the others are kept, which is most of what a table costs whose figures change each second.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.widgets import DataTable
from textual.widgets.data_table import RowKey

# Those in view, in each of the styles that they have had.
MOST_PICTURES = 4096


class FittedTable(DataTable[Text]):
    """Drawn again when its columns have become wider or narrower."""

    HELP = """
## Table

The arrows move the cursor, page up and page down go farther, home and end to its sides.
"""
    _widths: tuple[int, ...] = ()

    def __init__(self, **options: Any) -> None:
        self._pictures: dict[tuple[object, ...], tuple[Text, list[list[Segment]]]] = {}
        super().__init__(**options)

    def _render_cell(
        self,
        row_index: int,
        column_index: int,
        base_style: Style,
        width: int,
        cursor: bool = False,
        hover: bool = False,
    ) -> list[list[Segment]]:
        if row_index < 0 or column_index < 0:  # titles
            return super()._render_cell(row_index, column_index, base_style, width, cursor, hover)
        row, column = self._row_locations.get_key(row_index), self._column_locations.get_key(column_index)
        assert row is not None
        assert column is not None
        text = self._data[row][column]
        # The place is part of a picture: it says where a click on it is.
        state = (self._show_hover_cursor, self._pseudo_class_state)
        key = (row_index, column_index, base_style, width, cursor, hover, state)
        kept = self._pictures.get(key)
        if kept is not None and kept[0] is text:
            return kept[1]
        if len(self._pictures) >= MOST_PICTURES:
            self._pictures.clear()
        lines = super()._render_cell(row_index, column_index, base_style, width, cursor, hover)
        self._pictures[key] = (text, lines)
        return lines

    def _clear_caches(self) -> None:
        self._pictures.clear()
        super()._clear_caches()

    def _update_dimensions(self, new_rows: Iterable[RowKey]) -> None:
        super()._update_dimensions(new_rows)
        widths = tuple(column.get_render_width(self) for column in self.ordered_columns)
        if widths != self._widths:
            self._widths = widths
            self.draw_again()

    def draw_again(self) -> None:
        """Forget all that was drawn."""
        self._update_count += 1
        self._clear_caches()
        self.refresh()
