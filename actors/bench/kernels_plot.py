"""The shares of `callboard bench kernels` as bars, in SVG, with the goals marked: from a report, or from its JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from ...runtime.plot import COLOURS
from .report import Report

WIDTH, LABEL, RIGHT, HEAD, FOOT, BAR, GAP = 720, 250, 60, 58, 16, 14, 8
SHARES = ("of copy", "of matrix", "of floor")


def plot(report: Report) -> str:
    return plot_json(json.loads(report.to_json()))


def plot_json(report: Mapping[str, Any]) -> str:
    """One bar for each figure that is a share of a ceiling, with the range of its rounds; a line where a goal is."""
    figures = {name: one for name, one in report["results"].items() if one["unit"] in SHARES}
    goals = {
        name: target["goal"]
        for name, target in report["targets"].items()
        if target["unit"] in SHARES and name in figures
    }
    # A goal's figure is the same as that of its row: the bar of the goal says both.
    shown = {name: one for name, one in figures.items() if name in goals or one["value"] not in _values(figures, goals)}
    most = max([1.0, *(one["high"] for one in shown.values())])
    inner = WIDTH - LABEL - RIGHT
    height = HEAD + len(shown) * (BAR + GAP) + FOOT
    machine = report["machine"]
    title = f"callboard bench kernels: {machine.get('device')}, torch {machine['versions'].get('torch')}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="11" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="12" y="22" font-size="13">{escape(title)}</text>',
    ]
    for number, unit in enumerate(SHARES):
        x = 12 + number * 110
        parts.append(f'<rect x="{x}" y="34" width="14" height="8" fill="{COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 18}" y="42">{escape(unit)}</text>')
    for tick in range(round(most * 4) + 1):
        x = LABEL + inner * tick / 4 / most
        parts.append(f'<line x1="{x:.1f}" y1="{HEAD - 6}" x2="{x:.1f}" y2="{height - FOOT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{tick / 4:g}</text>')
    for number, (name, one) in enumerate(shown.items()):
        y = HEAD + number * (BAR + GAP)
        colour = COLOURS[SHARES.index(one["unit"])]
        length, middle = inner * one["value"] / most, y + BAR / 2
        parts.append(f'<text x="{LABEL - 6}" y="{y + BAR - 3}" text-anchor="end">{escape(_label(name))}</text>')
        parts.append(f'<rect x="{LABEL}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>')
        low, high = (LABEL + inner * one[end] / most for end in ("low", "high"))
        parts.append(f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}" stroke="#222"/>')
        parts.append(f'<text x="{LABEL + inner + 6}" y="{y + BAR - 3}">{one["value"]:.3g}</text>')
        if name in goals:
            x = LABEL + inner * goals[name] / most
            parts.append(
                f'<line x1="{x:.1f}" y1="{y - 3}" x2="{x:.1f}" y2="{y + BAR + 3}" stroke="#d00" stroke-width="2"/>'
            )
    parts.append("</svg>\n")
    return "\n".join(parts)


def _values(figures: Mapping[str, Any], goals: Mapping[str, float]) -> set[float]:
    return {figures[name]["value"] for name in goals}


def _label(name: str) -> str:
    for ending in ("_share", "_over_copy", "_over_matrix"):
        name = name.removesuffix(ending)
    return name.replace("_", " ")


if __name__ == "__main__":  # python -m callboard.actors.bench.kernels_plot RESULTS.json PLOT.svg
    Path(sys.argv[2]).write_text(plot_json(json.loads(Path(sys.argv[1]).read_text())))
