"""A drawing as a page of its own: the image, and values where the pointer is. It loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import msgspec

from .plot import COLOURS, Chart, Drawing, as_svg

_STYLE = """
body { margin: 16px; font: 13px sans-serif; color: #222; background: #fff; }
#drawing { position: relative; display: inline-block; }
#drawing svg { display: block; max-width: 100%; height: auto; }
#values { position: absolute; display: none; pointer-events: none; white-space: nowrap; padding: 4px 8px;
  background: #fff; border: 1px solid #888; border-radius: 3px; box-shadow: 0 1px 4px #0003; }
"""

# Names come into the page as text, never as markup.
_SCRIPT = """
const charts = JSON.parse(document.getElementById("points").textContent);
const image = document.querySelector("#drawing svg");
const box = document.getElementById("values");
const rule = document.createElementNS("http://www.w3.org/2000/svg", "line");
rule.setAttribute("stroke", "#888");
image.appendChild(rule);

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle; else high = middle;
  }
  return x - points[low][0] <= points[high][0] - x ? points[low] : points[high];
}

function hide() {
  box.style.display = "none";
  rule.setAttribute("visibility", "hidden");
}

function show(event) {
  const shown = image.getBoundingClientRect();
  const scale = image.viewBox.baseVal.width / shown.width;
  const x = (event.clientX - shown.left) * scale, y = (event.clientY - shown.top) * scale;
  const chart = charts.find(c => x >= c.left && x <= c.left + c.width && y >= c.top && y <= c.top + c.height);
  if (!chart || !chart.series.length) return hide();
  const wanted = chart.low + (x - chart.left) / chart.width * (chart.high - chart.low);
  const found = chart.series.map(series => [series, nearest(series.points, wanted)]);
  const at = nearest(found.map(([, point]) => point).sort((a, b) => a[0] - b[0]), wanted)[0];
  box.replaceChildren();
  const head = document.createElement("div");
  head.textContent = `${chart.along} ${at}`;
  box.appendChild(head);
  for (const [series, point] of found) {
    const line = document.createElement("div");
    line.style.color = series.colour;
    const where = point[0] === at ? "" : ` (${chart.along} ${point[0]})`;
    line.textContent = `${series.title}: ${Number(point[1].toPrecision(6))}${where}`;
    box.appendChild(line);
  }
  const place = chart.left + (at - chart.low) / (chart.high - chart.low) * chart.width;
  for (const end of ["x1", "x2"]) rule.setAttribute(end, place);
  rule.setAttribute("y1", chart.top);
  rule.setAttribute("y2", chart.top + chart.height);
  rule.setAttribute("visibility", "visible");
  box.style.display = "block";
  const left = place / scale + 12;
  const fits = left + box.offsetWidth <= shown.width;
  box.style.left = `${fits ? left : Math.max(0, place / scale - 12 - box.offsetWidth)}px`;
  box.style.top = `${(event.clientY - shown.top) + 12}px`;
}

image.addEventListener("mousemove", show);
image.addEventListener("mouseleave", hide);
"""


def page(drawn: Drawing, charts: Sequence[Chart]) -> str:
    """`charts`: those that `drawn` was made of."""
    known = [
        {
            "along": chart.along,
            "left": frame.left,
            "top": frame.top,
            "width": frame.width,
            "height": frame.height,
            "low": frame.x.low,
            "high": frame.x.high,
            "series": [
                {
                    "title": series.title,
                    "colour": COLOURS[(number if series.colour is None else series.colour) % len(COLOURS)],
                    "points": points,
                }
                for number, series in enumerate(chart.series)
                if (points := chart.shown(series))
            ],
        }
        for chart, frame in zip(charts, drawn.frames, strict=True)
    ]
    # A name must not end the element that it stands in.
    points = msgspec.json.encode(known).decode().replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{escape(drawn.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<div id="drawing">
{as_svg(drawn)}<div id="values"></div>
</div>
<script id="points" type="application/json">{points}</script>
<script>{_SCRIPT}</script>
</body>
</html>
"""
