"""Pictures from anywhere, made into what models take: RGB of 8 bits, upright, of a size that fits in memory.

A file's head says how many pixels it unpacks to, so a small file that would fill the memory is refused unread.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ..errors import ToolError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image as PILImage

MAX_PIXELS = 64_000_000  # 192 MB as RGB; cameras take 50 million

# What 16-bit greys are called. PIL clips these where it should scale them.
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def open_picture(data: bytes, *, name: str = "the image", max_pixels: int = MAX_PIXELS) -> PILImage.Image:
    """The picture in a file's bytes, as RGB: turned as its EXIF says, on white where it is transparent, its first frame
    where it moves.

    ToolError for what is no picture, is cut short, or has over `max_pixels`.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise ToolError(f"{name} is empty: it has no bytes", hint="give a PNG, JPEG, WebP, GIF, BMP or TIFF file")
    try:
        picture = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, max_pixels) from error
    except UnidentifiedImageError as error:
        raise ToolError(
            f"{name} is no picture that can be read: it starts with {data[:8]!r}",
            hint="give a PNG, JPEG, WebP, GIF, BMP or TIFF file",
        ) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise _damaged(name, error) from error
    if picture.width * picture.height > max_pixels:
        raise _too_large(name, max_pixels, picture.size)
    try:
        picture.seek(0)
        picture.load()
        return as_rgb(picture)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise _damaged(name, error) from error


def as_rgb(picture: PILImage.Image) -> PILImage.Image:
    """8-bit RGB, upright, on white where it is transparent."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode in _SIXTEEN_BITS or picture.mode in ("I", "F"):
        picture = _grey_of_8_bits(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        white.alpha_composite(layer)
        picture = white
    return picture.convert("RGB")


def png(picture: PILImage.Image) -> bytes:
    """As a PNG file. Level 1: the others take many times as long for a tenth of the size."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _grey_of_8_bits(picture: PILImage.Image) -> PILImage.Image:
    import numpy as np
    from PIL import Image

    values = np.asarray(picture)
    return Image.fromarray(_scaled(values, fractions=picture.mode == "F"))


def _scaled(values: np.ndarray, *, fractions: bool) -> np.ndarray:
    """To 0..255: from 0..1 where `fractions` stay within it, else from the range of 16 bits, or of 8 where all are."""
    import numpy as np

    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=65535.0, neginf=0.0)
    highest = float(values.max(initial=0.0))
    if fractions and highest <= 1.0:
        values = values * 255.0
    elif highest > 255.0:
        values = values / 257.0
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _damaged(name: str, error: BaseException) -> ToolError:
    return ToolError(f"{name} is damaged: {error}", hint="it may be cut short; send the whole file again")


def _too_large(name: str, max_pixels: int, size: tuple[int, int] | None = None) -> ToolError:
    what = f"{size[0]} x {size[1]} pixels" if size else "far too many pixels"
    return ToolError(f"{name} has {what}; up to {max_pixels:,} are read", hint="make it smaller first")
