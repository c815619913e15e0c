"""Text in pictures: what is written by PIL is read back by RapidOCR."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from callboard import Image, ToolContext
from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.media.ocr import Ocr
from callboard.actors.tools.media.text_lines import TextLine, page_text
from callboard.actors.tools.outcome import Outcome

pytestmark = pytest.mark.anyio

ROWS = (("Callboard Ltd", "Invoice 4711"), ("12 nails", "3.80"), ("Total", "27.80"))


@pytest.fixture(scope="module")
def reader() -> Ocr:
    return Ocr()


# What is less high or wide is enlarged first, which takes several times as long.
SIZE = (760, 740)


def page(rows: Sequence[Sequence[str]], *, colour: str = "black", ground: str = "white") -> PILImage.Image:
    picture = PILImage.new("RGB", SIZE, ground)
    draw = ImageDraw.Draw(picture)
    for number, row in enumerate(rows):
        for column, text in enumerate(row):
            draw.text((20 + 420 * column, 12 + 60 * number), text, fill=colour, font=ImageFont.load_default(size=34))
    return picture


async def read(reader: Ocr, picture: PILImage.Image, **arguments: Any) -> Outcome:
    return await reader.call({"image": "page", **arguments}, {"page": Image.from_pil(picture)})


async def test_what_is_written_is_read_row_by_row(reader: Ocr) -> None:
    found = (await read(reader, page(ROWS))).data
    assert found["text"].splitlines() == ["\t".join(row) for row in ROWS]
    assert found["num_lines"] == 6
    assert found["lines"] == []
    assert found["marked"] is None


async def test_lines_say_where_they_stand_and_the_marked_picture_shows_it(reader: Ocr) -> None:
    outcome = await read(reader, page(ROWS, colour="white", ground="navy"), lines=True, marked=True)
    found = outcome.data
    assert [line["text"] for line in found["lines"]] == [text for row in ROWS for text in row]
    for number, line in enumerate(found["lines"]):
        (left, top), _, (right, bottom), _ = line["corners"]
        row, column = divmod(number, 2)
        assert abs(left - (20 + 420 * column)) < 15
        assert 60 * row - 5 < top < bottom < 60 * row + 75
        assert left < right
        assert line["confidence"] > 0.8
    marked = np.asarray(found["marked"].pil())
    assert marked.shape == (SIZE[1], SIZE[0], 3)
    changed = (marked != np.asarray(page(ROWS, colour="white", ground="navy"))).any(axis=2)
    (left, top), _, (right, bottom), _ = found["lines"][0]["corners"]
    middle = int((left + right) / 2)
    assert changed[int(top) : int(top) + 4, middle].any()
    assert changed[int(bottom) - 3 : int(bottom) + 1, middle].any()


async def test_a_picture_without_text_has_none(reader: Ocr) -> None:
    outcome = await read(reader, PILImage.new("RGB", SIZE, "white"), lines=True, marked=True)
    assert outcome.data["text"] == ""
    assert outcome.data["num_lines"] == 0
    assert outcome.media["marked.png"].size > 0


async def test_what_is_not_sure_enough_is_left_out_and_the_next_call_is_as_ever(reader: Ocr) -> None:
    everything = await read(reader, page([["Perfectly clear"]]), lines=True)
    confidence = everything.data["lines"][0]["confidence"]
    assert confidence < 1.0, "it would not be left out"
    assert (await read(reader, page([["Perfectly clear"]]), min_confidence=1.0)).data["text"] == ""
    assert (await read(reader, page([["Perfectly clear"]]))).data["text"] == "Perfectly clear"


@pytest.mark.parametrize("data", [b"", b"no picture at all", b"RIFF\0\0\0\0WAVE"])
async def test_what_is_no_picture_is_an_error(reader: Ocr, data: bytes) -> None:
    with pytest.raises(ToolError, match=r"the image (scan|image)"):
        await reader.call({"image": "scan.png"}, {"scan.png": Image.from_bytes(data, "image/png", "scan.png")})


async def test_after_close_it_reads_again(reader: Ocr) -> None:
    await read(reader, page([["once"]]))
    await reader.once.close(ToolContext().in_thread)
    assert reader._reader is None
    assert (await read(reader, page([["twice"]]))).data["text"] == "twice"


async def test_two_calls_at_once_do_not_disturb_each_other(reader: Ocr) -> None:
    texts = ("first page", "second page", "third page")
    found: dict[str, str] = {}

    async def one(text: str) -> None:
        found[text] = (await read(reader, page([[text]]))).data["text"]

    async with anyio.create_task_group() as group:
        for text in texts:
            group.start_soon(one, text)
    assert found == {text: text for text in texts}


def test_its_schema_is_what_a_model_needs_to_call_it() -> None:
    schema = json.loads(Ocr().info.input_schema)
    assert schema["required"] == ["image"]
    assert schema["properties"]["image"]["format"] == "image"
    assert set(schema["properties"]) == {"image", "lines", "marked", "min_confidence"}
    assert Ocr().info.annotations.read_only


def line(text: str, left: float, top: float, height: float = 20) -> TextLine:
    right, bottom = left + 50, top + height
    return TextLine(text, 1.0, ((left, top), (right, top), (right, bottom), (left, bottom)))


def test_pieces_beside_each_other_are_one_row_from_left_to_right() -> None:
    lines = [line("d", 200, 103), line("b", 100, 2), line("c", 0, 100), line("a", 0, 0), line("e", 0, 130, 10)]
    assert page_text(lines) == "a\tb\nc\td\ne"
    assert page_text([]) == ""
