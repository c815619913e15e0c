"""What a tool found, drawn onto the picture: outlines with labels, and masks as coloured glass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image as PILImage
    from PIL import ImageDraw, ImageFont

Point = tuple[float, float]

# Eight colours that people with any colour vision tell apart (Okabe and Ito, 2008), without black.
PALETTE = (
    (213, 94, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (230, 159, 0),
    (86, 180, 233),
    (240, 228, 66),
)
_SMALL = 64  # pixels of the copy on which a label's place is looked for
_GLASS = 0.55  # how much of a mask's colour is seen over the picture


def with_outlines(
    picture: PILImage.Image, outlines: Sequence[Sequence[Point]], labels: Sequence[str]
) -> PILImage.Image:
    """A copy with each polygon's outline and its label, in the colours of the palette in turn.

    A label stands above its outline where there is room, else just inside it. Letters that the built-in font lacks are
    left to the caller to avoid: it has Latin ones.
    """
    from PIL import ImageDraw

    copy = picture.copy()
    draw = ImageDraw.Draw(copy)
    width = max(2, min(picture.size) // 200)
    font = _font(picture)
    for number, (outline, label) in enumerate(zip(outlines, labels, strict=True)):
        colour = PALETTE[number % len(PALETTE)]
        draw.polygon(list(outline), outline=colour, width=width)
        if label:
            _label(draw, picture.size, outline, label, colour, font)
    return copy


def corners(box: tuple[float, float, float, float]) -> list[Point]:
    """The outline of a box (left, top, right, bottom), whose right and bottom are just outside of it."""
    left, top, right, bottom = box
    right, bottom = max(left, right - 1), max(top, bottom - 1)
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def with_masks(picture: PILImage.Image, masks: Sequence[PILImage.Image], labels: Sequence[str]) -> PILImage.Image:
    """A copy with each mask (mode L, 255 where the thing is) as coloured glass, its name where it is widest."""
    from PIL import Image, ImageDraw

    copy = picture.copy()
    for number, mask in enumerate(masks):
        colour = Image.new("RGB", picture.size, PALETTE[number % len(PALETTE)])
        copy.paste(colour, mask=mask.point(lambda value: int(value * _GLASS)))
    draw = ImageDraw.Draw(copy)
    font = _font(picture)
    for number, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        middle = _widest(mask)
        if middle is not None and label:
            left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
            x, y = middle[0] - (right - left) / 2, middle[1] - (bottom - top) / 2
            x, y = _kept_inside(x, y, right - left, bottom - top, picture.size)
            _text(draw, x - left, y - top, label, PALETTE[number % len(PALETTE)], font)
    return copy


def _widest(mask: PILImage.Image) -> Point | None:
    """The point of a mask that is farthest from its edge, about: the middle of its box may be in another's. None where
    it is empty. Found on a small copy, whose edge is taken off as often as anything is left."""
    from PIL import Image, ImageFilter, ImageOps

    if mask.getbbox() is None:
        return None
    scale = max(1.0, max(mask.size) / _SMALL)
    size = max(1, round(mask.width / scale)), max(1, round(mask.height / scale))
    # What is thinner than a pixel of the copy stays in it; the border makes the picture's own edge one of the mask's.
    left = ImageOps.expand(mask.resize(size, Image.Resampling.BOX).point(lambda value: 255 if value else 0), 1, 0)
    while (eroded := left.filter(ImageFilter.MinFilter(3))).getbbox() is not None:
        left = eroded
    points = [divmod(number, left.width) for number, value in enumerate(left.tobytes()) if value]
    y, x = points[len(points) // 2]
    return (x - 0.5) * mask.width / size[0], (y - 0.5) * mask.height / size[1]


def _label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    outline: Sequence[Point],
    label: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    width, height = right - left, bottom - top
    x, y = min(point[0] for point in outline), min(point[1] for point in outline)
    above = y - height - 3
    x, y = _kept_inside(x, above if above >= 0 else y + 4, width, height, size)
    _text(draw, x - left, y - top, label, colour, font)


def _kept_inside(x: float, y: float, width: float, height: float, size: tuple[int, int]) -> Point:
    """With the two pixels of ground that a text has around it."""
    return max(2.0, min(x, size[0] - width - 3)), max(2.0, min(y, size[1] - height - 3))


def _text(
    draw: ImageDraw.ImageDraw,
    x: float,
    y: float,
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """White or black on its colour, whichever is easier to read."""
    left, top, right, bottom = draw.textbbox((x, y), text, font=font)
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text((x, y), text, fill="black" if brightness > 140 else "white", font=font)


def _font(picture: PILImage.Image) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size=max(12, min(picture.size) // 28))
