"""Pictures: whatever the file, RGB of 8 bits comes out, or an error that says what is wrong with it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.media.drawing import PALETTE, corners, with_masks, with_outlines
from callboard.actors.tools.media.pictures import as_rgb, open_picture, png


def file_of(picture: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def half(left: object, right: object, mode: str, size: tuple[int, int] = (8, 4)) -> Image.Image:
    picture = Image.new(mode, size, left)  # pyright: ignore[reportArgumentType]
    picture.paste(right, (size[0] // 2, 0, *size))  # pyright: ignore[reportArgumentType, reportCallIssue]
    return picture


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_the_common_formats_are_read(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    picture = open_picture(file_of(half((255, 0, 0), (0, 0, 255), "RGB"), format, **options))
    assert (picture.mode, picture.size) == ("RGB", (8, 4))
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert picture.getpixel((7, 3)) == (0, 0, 255)


def test_what_is_transparent_is_white() -> None:
    picture = open_picture(file_of(half((255, 0, 0, 255), (0, 0, 0, 0), "RGBA")))
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert picture.getpixel((7, 0)) == (255, 255, 255)
    assert open_picture(file_of(Image.new("LA", (2, 2), (0, 128)))).getpixel((0, 0)) == (127, 127, 127)


def test_a_transparent_colour_of_a_palette_is_white() -> None:
    picture = half(0, 1, "P")
    picture.putpalette([255, 0, 0, 0, 255, 0])
    opened = open_picture(file_of(picture, transparency=1))
    assert opened.getpixel((0, 0)) == (255, 0, 0)
    assert opened.getpixel((7, 0)) == (255, 255, 255)


def test_inks_become_colours() -> None:
    """A JPEG for a press: cyan and magenta at full make blue. JPEG is lossy, so only about."""
    picture = open_picture(file_of(Image.new("CMYK", (16, 16), (255, 255, 0, 0)), "JPEG", quality=95))
    assert picture.mode == "RGB"
    pixel = np.asarray(picture)[8, 8].astype(int)
    assert np.abs(pixel - [0, 0, 255]).max() < 12


def test_sixteen_bits_are_scaled_to_eight() -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    assert np.asarray(open_picture(file_of(Image.fromarray(values))))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_fractions_are_scaled_too() -> None:
    values = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)
    opened = open_picture(file_of(Image.fromarray(values), "TIFF"))
    assert np.asarray(opened)[0, :, 1].tolist() == [0, 128, 255, 0]


def test_a_picture_that_moves_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    assert open_picture(data).getpixel((1, 1)) == (255, 0, 0)


def test_a_picture_is_turned_as_its_camera_was_held() -> None:
    picture = half((255, 255, 255), (0, 0, 0), "RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right to see it upright
    opened = open_picture(file_of(picture, "PNG", exif=exif))
    assert opened.size == (4, 8)
    assert opened.getpixel((1, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 7)) == (0, 0, 0)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is so large."""

    def chunk(mark: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + mark + body + struct.pack(">I", zlib.crc32(mark + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(9000, 9000), (12_000, 12_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
)
def test_a_small_file_that_would_fill_the_memory_is_refused(width: int, height: int) -> None:
    with pytest.raises(ToolError, match="pixels"):
        open_picture(bomb(width, height))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no bytes"),
        (b"RIFF\x24\x00\x00\x00WAVEfmt ", "no picture"),
        (b"%PDF-1.7", "no picture"),
        (file_of(Image.effect_noise((64, 64), 90.0))[:900], "damaged"),
        (file_of(Image.effect_noise((64, 64), 90.0), "JPEG")[:700], "damaged"),
        (b"\x89PNG\r\n\x1a\n", "no picture|damaged"),
        (b"GIF89a", "no picture|damaged"),
    ],
)
def test_what_is_no_picture_is_an_error_that_says_why(data: bytes, says: str) -> None:
    with pytest.raises(ToolError, match=says) as caught:
        open_picture(data, name="the image x.png")
    assert "x.png" in str(caught.value)
    assert caught.value.hint


@given(st.data(), st.sampled_from(["PNG", "GIF", "BMP", "JPEG"]))
def test_damaged_files_are_pictures_or_errors_and_nothing_else(data: st.DataObject, format: str) -> None:
    file = bytearray(file_of(half((9, 200, 30), (1, 2, 3), "RGB"), format))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        picture = open_picture(bytes(file[: data.draw(st.integers(0, len(file)))]), max_pixels=100_000)
    except ToolError:
        return
    assert picture.mode == "RGB"


def test_png_gives_every_pixel_back() -> None:
    picture = Image.effect_noise((40, 30), 80.0).convert("RGB")
    assert open_picture(png(picture)).tobytes() == picture.tobytes()


def test_an_outline_is_drawn_where_the_box_is_and_nowhere_else() -> None:
    picture = Image.new("RGB", (200, 100), "white")
    drawn = with_outlines(picture, [corners((50, 40, 150, 90))], [""])
    changed = np.argwhere((np.asarray(drawn) != np.asarray(picture)).any(axis=2))
    assert changed.min(axis=0).tolist() == [40, 50]
    assert changed.max(axis=0).tolist() == [89, 149]
    assert drawn.getpixel((50, 60)) == PALETTE[0]
    assert drawn.getpixel((100, 65)) == (255, 255, 255)
    assert picture.getpixel((50, 60)) == (255, 255, 255)


@pytest.mark.parametrize("box", [(0, 0, 20, 10), (190, 95, 200, 100), (195, 0, 200, 4)])
def test_a_label_at_the_edge_stays_within_the_picture(box: tuple[float, float, float, float]) -> None:
    picture = Image.new("RGB", (200, 100), "white")
    without = np.asarray(with_outlines(picture, [corners(box)], [""]))
    labelled = np.asarray(with_outlines(picture, [corners(box)], ["cat 99%"]))
    text = np.argwhere((labelled != without).any(axis=2))
    height, width = text.max(axis=0) - text.min(axis=0)
    assert height >= 8
    assert width >= 30


def test_masks_colour_what_they_cover() -> None:
    picture = Image.new("RGB", (60, 40), "white")
    mask = Image.new("L", picture.size, 0)
    mask.paste(255, (0, 0, 30, 40))
    glass = with_masks(picture, [mask], [""])
    assert glass.getpixel((45, 20)) == (255, 255, 255)
    red, green, blue = np.asarray(glass)[20, 10].astype(int)
    expected = [255 + (channel - 255) * 140 / 255 for channel in PALETTE[0]]
    assert np.abs(np.array([red, green, blue]) - expected).max() <= 2


def test_a_name_stands_within_its_own_region() -> None:
    """A frame around a square: the middle of the frame's box is the middle of the square."""
    picture = Image.new("RGB", (300, 300), "white")
    frame, square = Image.new("L", picture.size, 255), Image.new("L", picture.size, 0)
    frame.paste(0, (80, 80, 220, 220))
    square.paste(255, (80, 80, 220, 220))
    glass, named = (np.asarray(with_masks(picture, [frame, square], labels)) for labels in (["", ""], ["O", "II"]))
    changed = (glass != named).any(axis=2)
    inside = np.asarray(square) > 0
    assert changed[inside].any()
    assert changed[~inside].any()
    rows, columns = np.nonzero(changed & inside)
    assert abs(rows.mean() - 150) < 12
    assert abs(columns.mean() - 150) < 12
    edge = np.zeros_like(inside)
    edge[78:222, 78:222] = True
    edge[90:210, 90:210] = False
    assert not changed[edge].any()


def test_a_mask_of_one_pixel_and_an_empty_one_are_no_trouble() -> None:
    picture = Image.new("RGB", (500, 20), "white")
    dot, empty = Image.new("L", picture.size, 0), Image.new("L", picture.size, 0)
    dot.putpixel((499, 0), 255)
    assert with_masks(picture, [dot, empty], ["dot", "nothing"]).size == (500, 20)


def test_a_picture_in_memory_needs_no_file() -> None:
    assert as_rgb(Image.new("1", (2, 2), 1)).getpixel((0, 0)) == (255, 255, 255)
