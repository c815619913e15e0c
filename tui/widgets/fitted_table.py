"""A table whose columns are as wide as what is in them, always.

Textual measures new cells when it is idle. Of a row that it drew before that it keeps the picture, in columns that were
as wide as their titles, until something else of the table changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text
from textual.widgets import DataTable
from textual.widgets.data_table import RowKey


class FittedTable(DataTable[Text]):
    """Drawn again when its columns have become wider or narrower."""

    _widths: tuple[int, ...] = ()

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
