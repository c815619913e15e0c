"""Pictures in a terminal: each character is two points, one above the other, in colours of their own."""

from __future__ import annotations

import io
from typing import Any

from rich.color import Color
from rich.style import Style
from rich.text import Text

from ..runtime.errors import CallboardError

# A picture of more points than that is not worth decoding to be drawn in a few hundred.
MAX_POINTS = 64_000_000


class NotDrawn(CallboardError):
    """A picture that cannot be drawn here; it can still be saved."""

    code = "tui.picture"


def draw_picture(data: bytes, width: int, height: int) -> Text:
    """At most `width` by `height` characters, in the picture's proportions. Raises NotDrawn."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise NotDrawn("pictures are drawn by Pillow, which is not here", hint="pip install pillow") from None
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_POINTS:
                raise NotDrawn(f"a picture of {picture.width} by {picture.height} is too large to be drawn here")
            share = min(width / picture.width, 2 * height / picture.height, 1.0)
            columns, rows = max(1, round(picture.width * share)), max(2, round(picture.height * share))
            points = picture.convert("RGB").resize((columns, rows + rows % 2))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise NotDrawn(f"this is no picture that can be drawn: {error}") from error
    text = Text(no_wrap=True)
    for row in range(0, points.height, 2):
        for column in range(points.width):
            upper, lower = points.getpixel((column, row)), points.getpixel((column, row + 1))
            text.append("▀", Style(color=_colour(upper), bgcolor=_colour(lower)))
        text.append("\n")
    text.rstrip()
    return text


def _colour(point: Any) -> Color:
    return Color.from_rgb(*point)
