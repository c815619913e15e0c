"""A few line charts side by side, as shapes, and as SVG: plain text that browsers and documents show, and no library
to install. `plot_png` makes pixels of the same shapes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from .axes import TICKS, Axis, label, linear_axis, log_axis, tight_axis

WIDTH, HEIGHT = 340, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 34, 44
HEAD = 34
INK, GRID, TICK, PAPER = "#222222", "#dddddd", "#888888", "#ffffff"
# Told apart by people who see colours differently too (after Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8c564b")
FAINT = 0.3
# The mean width of a letter in a sans-serif type, in its size.
LETTER = 0.56


@dataclass(frozen=True)
class Series:
    """`colour`: which of `COLOURS`, without one that of its place in the chart. `faint`: behind a clearer line."""

    title: str
    points: tuple[tuple[float, float], ...]
    colour: int | None = None
    faint: bool = False
    dots: bool = True


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis. `from_zero`: both axes begin at 0, so that lengths can be compared; without it the one
    along is as long as the points reach, and the other begins near the least of them. `log`: of the values; those that
    are not above 0 are not shown. `legend`: whether it has one of its own."""

    title: str
    along: str
    series: tuple[Series, ...]
    from_zero: bool = True
    log: bool = False
    legend: bool = True

    def shown(self, series: Series) -> list[tuple[float, float]]:
        """Its points that have a place, from the left to the right."""
        return sorted((x, y) for x, y in series.points if math.isfinite(y) and (y > 0 or not self.log))

    def axes(self, ticks: int = TICKS) -> tuple[Axis, Axis]:
        """Along and up, each with about so many round numbers."""
        points = [point for series in self.series for point in self.shown(series)]
        xs = [x for x, _ in points]
        along = linear_axis(xs, from_zero=True, count=ticks) if self.from_zero else tight_axis(xs, ticks)
        if self.log:
            return along, log_axis(y for _, y in points)
        return along, linear_axis((y for _, y in points), from_zero=self.from_zero, count=ticks)


@dataclass(frozen=True)
class Rule:
    begin: tuple[float, float]
    end: tuple[float, float]
    colour: str
    width: float = 1.0


@dataclass(frozen=True)
class Path:
    points: tuple[tuple[float, float], ...]
    colour: str
    width: float
    opacity: float = 1.0


@dataclass(frozen=True)
class Dot:
    centre: tuple[float, float]
    radius: float
    colour: str


@dataclass(frozen=True)
class Text:
    """`at`: its baseline's beginning, middle or end, as `anchor` says in SVG's words."""

    at: tuple[float, float]
    text: str
    anchor: str = "start"
    bold: bool = False
    size: int = 11


Shape = Rule | Path | Dot | Text


@dataclass(frozen=True)
class Frame:
    """Where a chart's axes lie on the drawing."""

    left: float
    top: float
    width: float
    height: float
    x: Axis
    y: Axis

    def place(self, x: float, y: float) -> tuple[float, float]:
        return self.left + self.width * self.x.share(x), self.top + self.height * (1 - self.y.share(y))


@dataclass(frozen=True)
class Drawing:
    width: int
    height: int
    title: str
    shapes: tuple[Shape, ...]
    frames: tuple[Frame, ...]


def svg(charts: Sequence[Chart], title: str) -> str:
    return as_svg(drawing(charts, title))


def drawing(
    charts: Sequence[Chart],
    title: str,
    *,
    columns: int = 0,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    legend: Sequence[str] = (),
) -> Drawing:
    """Charts of `size` in rows of `columns` (0: one row). `legend`: of colours that mean the same in all of them."""
    columns = columns or len(charts)
    rows = -(-len(charts) // columns)
    shapes: list[Shape] = [Text((LEFT, 22), title, size=13)]
    shapes += _legend(legend, LEFT + LETTER * 13 * len(title) + 24, 22)
    frames: list[Frame] = []
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        frame = _frame(chart, column * size[0], HEAD + row * size[1], size)
        frames.append(frame)
        shapes += _axes(chart, frame)
        shapes += _lines(chart, frame)
    return Drawing(size[0] * columns, HEAD + size[1] * rows, title, tuple(shapes), tuple(frames))


def as_svg(drawn: Drawing) -> str:
    width, height = drawn.width, drawn.height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f"<title>{escape(drawn.title)}</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        *map(_element, drawn.shapes),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _element(shape: Shape) -> str:
    match shape:
        case Rule((x1, y1), (x2, y2), colour, width):
            ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
            return f'<line {ends} stroke="{colour}" stroke-width="{width:g}"/>'
        case Path(points, colour, width, opacity):
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            thin = f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
            return f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="{width:g}"{thin}/>'
        case Dot((x, y), radius, colour):
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"/>'
        case Text((x, y), text, anchor, bold, size):
            style = f' text-anchor="{anchor}"' if anchor != "start" else ""
            style += ' font-weight="bold"' if bold else ""
            style += f' font-size="{size}"' if size != 11 else ""
            return f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(text)}</text>'


def _frame(chart: Chart, left: float, top: float, size: tuple[int, int]) -> Frame:
    return Frame(left + LEFT, top + TOP, size[0] - LEFT - RIGHT, size[1] - TOP - BOTTOM, *chart.axes())


def _axes(chart: Chart, frame: Frame) -> list[Shape]:
    right, bottom = frame.left + frame.width, frame.top + frame.height
    shapes: list[Shape] = [Text((frame.left, frame.top - 20), chart.title, bold=True)]
    for tick in frame.y.ticks:
        _, y = frame.place(frame.x.low, tick)
        shapes.append(Rule((frame.left, y), (right, y), GRID))
        shapes.append(Text((frame.left - 6, y + 4), label(tick), "end"))
    for tick in frame.x.ticks:
        x, _ = frame.place(tick, frame.y.low)
        shapes.append(Rule((x, bottom), (x, bottom + 4), TICK))
        shapes.append(Text((x, bottom + 16), label(tick), "middle"))
    shapes.append(Text((frame.left + frame.width / 2, bottom + BOTTOM - 10), chart.along, "middle"))
    return shapes


def _lines(chart: Chart, frame: Frame) -> list[Shape]:
    shapes: list[Shape] = []
    for number, series in enumerate(chart.series):
        colour = number if series.colour is None else series.colour
        paint = COLOURS[colour % len(COLOURS)]
        places = tuple(frame.place(x, y) for x, y in chart.shown(series))
        if len(places) > 1:
            shapes.append(Path(places, paint, 1.0, FAINT) if series.faint else Path(places, paint, 1.8))
        if series.dots or len(places) == 1:
            shapes += [Dot(place, 2.6, paint) for place in places]
        if chart.legend:
            shapes += _entry(series.title, colour, frame.left + 8 + number * 84, frame.top - 5)
    return shapes


def _legend(titles: Sequence[str], left: float, y: float) -> list[Shape]:
    shapes: list[Shape] = []
    for colour, title in enumerate(titles):
        shapes += _entry(title, colour, left, y)
        left += 18 + LETTER * 11 * len(title) + 16
    return shapes


def _entry(title: str, colour: int, left: float, y: float) -> list[Shape]:
    return [
        Rule((left, y - 4), (left + 14, y - 4), COLOURS[colour % len(COLOURS)], 3),
        Text((left + 18, y), title),
    ]
