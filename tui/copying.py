"""What is worth copying, as text: of a widget with text, and of a table's row.

It is taken as it is shown, so what controls a terminal is visible signs in it, and is not let loose where it is pasted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text
from textual.widgets import Static

if TYPE_CHECKING:
    from textual.widget import Widget

    from .widgets.live_table import LiveTable


class Copied(NamedTuple):
    """`what` it is in words: "the row"."""

    text: str
    what: str


def text_of(widget: Widget) -> str:
    """What the texts (`Static`) in a widget say, those that are hidden too."""
    found = [widget] if isinstance(widget, Static) else list(widget.query(Static))
    texts = [one.content.plain if isinstance(one.content, Text) else str(one.content) for one in found]
    return "\n\n".join(text.strip("\n") for text in texts if text.strip())


def row_of(table: LiveTable) -> str:
    """The row under the cursor, with tabs between its cells: a spreadsheet takes them apart."""
    cells = table.rows_shown.get(table.selected_key, ())
    return "\t".join(column.cell(cell).plain.strip() for column, cell in zip(table.columns_shown, cells, strict=False))
