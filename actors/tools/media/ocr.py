"""The text in a picture, by RapidOCR: its models come in its wheel, so nothing is fetched."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ..context import ToolContext
from ..tool import Tool
from ..values import Image
from .drawing import with_outlines
from .models import importing
from .pictures import open_picture, png
from .text_lines import TextLine, page_text, rows

if TYPE_CHECKING:
    from PIL import Image as PILImage


class PageText(msgspec.Struct, frozen=True):
    """`text`: a line for each row, what stands beside each other set apart by tabs. `lines`: the pieces in reading
    order; `marked`: the picture with their outlines, by their numbers from 1. Both only where they were asked for."""

    text: str
    num_lines: int
    lines: tuple[TextLine, ...] = ()
    marked: Image | None = None


class Ocr(Tool, name="ocr", read_only=True, idempotent=True, open_world=False, timeout=120.0, tags=("image", "text")):
    """One reader, kept between calls, used by one call at a time."""

    def __init__(self) -> None:
        self._reader: Any = None
        self._computing = threading.Lock()

    def setup(self) -> None:
        with importing("ocr"):
            import onnxruntime  # noqa: F401  # rapidocr itself looks for it at the first picture only
            from rapidocr import RapidOCR
        self._reader = RapidOCR(params={"Global.log_level": "critical"})

    def close(self) -> None:
        with self._computing:
            self._reader = None

    def run(
        self,
        image: Image,
        context: ToolContext,
        lines: bool = False,
        marked: bool = False,
        min_confidence: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5,
    ) -> PageText:
        """Read the text in an image: printed or clearly written, Latin letters, Chinese, Japanese, digits and signs.

        Args:
            image: the picture to read
            lines: also give each piece of text with its confidence and corners in pixels
            marked: also give the picture back with what was found outlined and numbered
            min_confidence: leave out what is less sure than this
        """
        picture = open_picture(image.bytes(), name=f"the image {image.name}".strip())
        with self._computing:
            context.check()
            found = self._read(picture, min_confidence)
        ordered = [line for row in rows(found) for line in row]
        outlined = None
        if marked:
            # By number: the built-in font has not all the letters that can be read.
            numbers = [str(number) for number in range(1, len(ordered) + 1)]
            outlined = with_outlines(picture, [line.corners for line in ordered], numbers)
        return PageText(
            text=page_text(found),
            num_lines=len(ordered),
            lines=tuple(ordered) if lines else (),
            marked=Image.from_bytes(png(outlined), "image/png", "marked.png") if outlined else None,
        )

    def _read(self, picture: PILImage.Image, min_confidence: float) -> list[TextLine]:
        import numpy as np

        pixels = np.asarray(picture)[:, :, ::-1]  # [height, width, BGR]: arrays are taken as OpenCV has them
        result = self._reader(np.ascontiguousarray(pixels), text_score=min_confidence)
        # Nothing found comes as an object of another type with other fields.
        texts, boxes, scores = (getattr(result, name, None) for name in ("txts", "boxes", "scores"))
        if texts is None or boxes is None or scores is None:
            return []
        return [
            TextLine(text, round(float(score), 4), _four(box))
            for text, box, score in zip(texts, boxes, scores, strict=True)
        ]


def _four(box: Any) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]:
    a, b, c, d = ((float(x), float(y)) for x, y in box)
    return a, b, c, d


ocr = Ocr()
