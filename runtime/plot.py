"""A few line charts side by side, as SVG: plain text that browsers and documents show, and no library to install."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 340, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 34, 44
HEAD = 34
TICKS = 5
# Told apart by people who see colours differently too (after Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#d55e00", "#009e73")


@dataclass(frozen=True)
class Series:
    title: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis, which begins at 0 as the other one does: lengths can be compared."""

    title: str
    along: str
    series: tuple[Series, ...]


def svg(charts: Sequence[Chart], title: str) -> str:
    width, height = WIDTH * len(charts), HEIGHT + HEAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="22" font-size="13">{escape(title)}</text>',
    ]
    for number, chart in enumerate(charts):
        parts.append(f'<g transform="translate({number * WIDTH} {HEAD})">{_chart(chart)}</g>')
    parts.append("</svg>\n")
    return "\n".join(parts)


def nice_step(span: float, count: int) -> float:
    """A step of 1, 2 or 5 times a power of ten, of which at most `count` cover `span`."""
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    # A rounding error must not take the next larger step where one fits exactly.
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _chart(chart: Chart) -> str:
    xs = [x for series in chart.series for x, _ in series.points]
    ys = [y for series in chart.series for _, y in series.points]
    x_step, y_step = nice_step(max(xs, default=0) or 1, TICKS), nice_step(max(ys, default=0) or 1, TICKS)
    x_most = x_step * max(1, math.ceil(max(xs, default=0) / x_step - 1e-9))
    y_most = y_step * max(1, math.ceil(max(ys, default=0) / y_step - 1e-9))
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + inner_width * x / x_most, TOP + inner_height * (1 - y / y_most)

    parts = [f'<text x="{LEFT}" y="14" font-weight="bold">{escape(chart.title)}</text>']
    for tick in range(round(y_most / y_step) + 1):
        _, y = place(0, tick * y_step)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_label(tick * y_step)}</text>')
    for tick in range(round(x_most / x_step) + 1):
        x, y = place(tick * x_step, 0)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{y + 4:.1f}" stroke="#888"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{_label(tick * x_step)}</text>')
    middle = LEFT + inner_width / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(chart.along)}</text>')
    for number, series in enumerate(chart.series):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(x, y) for x, y in sorted(series.points)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in places]
        at = LEFT + 8 + number * 84
        parts.append(f'<line x1="{at}" y1="25" x2="{at + 14}" y2="25" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{at + 18}" y="29">{escape(series.title)}</text>')
    return "\n".join(parts)


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"
