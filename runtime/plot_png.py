"""Pixels of a drawing, by Pillow."""

from __future__ import annotations

import math
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from .errors import MissingExtra
from .plot import INK, PAPER, Dot, Drawing, Path, Rule, Text

if TYPE_CHECKING:
    from PIL import ImageDraw

# Pixels for each unit of a drawing, and how many times as many are drawn: Pillow's lines have no soft edges.
SCALE = 2
FINER = 2
# What SVG's anchors are in Pillow's words: left, middle or right, on the baseline.
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def write_png(drawn: Drawing, out: File) -> None:
    """Raises MissingExtra where Pillow is not installed."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtra.of("train", "a plot as PNG") from error

    scale = SCALE * FINER
    image = Image.new("RGB", (drawn.width * scale, drawn.height * scale), PAPER)
    pen = ImageDraw.Draw(image)
    fonts: dict[int, Any] = {}
    for shape in drawn.shapes:
        _paint(pen, shape, scale, fonts)
    image.resize((drawn.width * SCALE, drawn.height * SCALE), Image.Resampling.LANCZOS).save(out, format="PNG")


def _paint(pen: ImageDraw.ImageDraw, shape: Rule | Path | Dot | Text, scale: int, fonts: dict[int, Any]) -> None:
    from PIL import ImageFont

    match shape:
        case Rule(begin, end, colour, width):
            pen.line([_scaled(begin, scale), _scaled(end, scale)], colour, round(width * scale))
        case Path(points, colour, width, opacity):
            places = [_scaled(point, scale) for point in points]
            pen.line(places, _on_paper(colour, opacity), math.ceil(width * scale), joint="curve")
        case Dot((x, y), radius, colour):
            (left, top), (right, bottom) = (_scaled((x + side, y + side), scale) for side in (-radius, radius))
            pen.ellipse((left, top, right, bottom), colour)
        case Text(at, text, anchor, bold, size):
            if size not in fonts:
                fonts[size] = ImageFont.load_default(size * scale)
            place, stroke = _scaled(at, scale), 1 if bold else 0
            pen.text(place, text, INK, fonts[size], anchor=_ANCHORS[anchor], stroke_width=stroke)


def _scaled(point: tuple[float, float], scale: int) -> tuple[float, float]:
    return point[0] * scale, point[1] * scale


def _on_paper(colour: str, opacity: float) -> str:
    """What a colour that lets so much through is over white."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + (part - 255) * opacity):02x}" for part in parts)
