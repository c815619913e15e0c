"""A chart in a terminal, in braille characters: each holds two by four points."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .axes import Axis, label
from .plot import Chart

if TYPE_CHECKING:
    from rich.text import Text

# For `plot.COLOURS`, in the terminal's own palette.
STYLES = ("blue", "yellow", "red", "green", "magenta", "cyan", "white")
BLANK = 0x2800
# The bit of each point of a character, by row and column.
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
# Rows of characters from one number beside the axis to the next, at least.
_ROWS_EACH = 3
MIN_WIDTH, MIN_HEIGHT = 20, 5


class Canvas:
    """`width` by `height` characters. A character has one style, that of the line which crossed it last."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._bits = [[0] * width for _ in range(height)]
        self._styles = [[""] * width for _ in range(height)]

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Through points whose coordinates are shares of the canvas, from its lower left; a single one is a dot."""
        places = [self._place(x, y) for x, y in points]
        for one, other in zip(places, places[1:] or places, strict=False):
            self._segment(one, other, style)

    def dots(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """Four points each, where they fit."""
        for x, y in points:
            column, row = self._place(x, y)
            for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
                self._set(min(column + right, 2 * self.width - 1), min(row + down, 4 * self.height - 1), style)

    def rows(self) -> list[Text]:
        from rich.text import Text

        rows: list[Text] = []
        for bits, styles in zip(self._bits, self._styles, strict=True):
            row = Text()
            for style, run in itertools.groupby(zip(bits, styles, strict=True), key=lambda one: one[1]):
                row.append("".join(chr(BLANK + bit) for bit, _ in run), style or None)
            rows.append(row)
        return rows

    def _place(self, x: float, y: float) -> tuple[int, int]:
        column = round(min(1.0, max(0.0, x)) * (2 * self.width - 1))
        return column, round((1 - min(1.0, max(0.0, y))) * (4 * self.height - 1))

    def _segment(self, one: tuple[int, int], other: tuple[int, int], style: str) -> None:
        (x1, y1), (x2, y2) = one, other
        steps = max(abs(x2 - x1), abs(y2 - y1), 1)
        for step in range(steps + 1):
            self._set(x1 + round((x2 - x1) * step / steps), y1 + round((y2 - y1) * step / steps), style)

    def _set(self, x: int, y: int, style: str) -> None:
        self._bits[y // 4][x // 2] |= _BITS[y % 4][x % 2]
        self._styles[y // 4][x // 2] = style


def terminal_chart(chart: Chart, width: int, height: int) -> list[Text]:
    """`height` lines of `width` characters: a title, the lines (of series with dots, the dots), and where the axis
    along begins and ends.

    ValueError below `MIN_WIDTH` or `MIN_HEIGHT`.
    """
    from rich.text import Text

    if width < MIN_WIDTH or height < MIN_HEIGHT:
        raise ValueError(f"a chart of {width} by {height} characters cannot be read")
    num_rows = height - 2
    along, up = chart.axes(max(1, num_rows // _ROWS_EACH))
    labels = _labels(up, num_rows)
    gutter = max(len(text) for text in labels.values()) + 1
    canvas = Canvas(width - gutter, num_rows)
    for number, series in enumerate(chart.series):
        style = STYLES[(number if series.colour is None else series.colour) % len(STYLES)]
        points = [(along.share(x), up.share(y)) for x, y in chart.shown(series)]
        draw = canvas.dots if series.dots else canvas.line
        draw(points, f"dim {style}" if series.faint else style)
    lines = [_cut(Text(chart.title, "bold"), width)]
    for row, drawn in enumerate(canvas.rows()):
        lines.append(Text().append(labels.get(row, "").rjust(gutter - 1) + " ", "dim").append_text(drawn))
    begin, end = label(along.low), label(along.high)
    foot = begin + chart.along.center(max(0, canvas.width - len(begin) - len(end))) + end
    lines.append(_cut(Text(" " * gutter + foot, "dim"), width))
    return lines


def _labels(axis: Axis, num_rows: int) -> dict[int, str]:
    """What stands beside which row; rows from the top."""
    rows: dict[int, str] = {}
    for tick in axis.ticks:
        row = min(num_rows - 1, int((1 - axis.share(tick)) * num_rows))
        if all(abs(row - other) > 1 for other in rows):
            rows[row] = label(tick)
    return rows


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="crop", pad=True)
    return text
