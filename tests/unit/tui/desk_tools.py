"""Tools of the tests of the terminal UI: notes in files, a picture, and one that takes every kind of argument."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import Annotated, Any

import msgspec

from callboard import File, Image, ToolContext, tool

ROOT = Path(os.environ.get("DESK_ROOT", "/nowhere"))
"""The folder of the notes."""


@tool(read_only=True)
def read(path: str) -> str:
    """Read a note."""
    return (ROOT / path).read_text()


@tool
def write(path: str, content: str) -> str:
    """Write a note anew."""
    (ROOT / path).write_text(content)
    return f"{path} is written"


@tool(read_only=True)
def picture(width: Annotated[int, msgspec.Meta(ge=2, le=64)] = 16) -> Image:
    """Draw a picture: red on the left, blue on the right."""
    from PIL import Image as Pictures

    drawn = Pictures.new("RGB", (width, width // 2), (200, 30, 30))
    drawn.paste((30, 30, 200), (width // 2, 0, width, width // 2))
    return Image.from_pil(drawn, name="flag.png")


class Mood(enum.StrEnum):
    GOOD = "good"
    BAD = "bad"


@tool(read_only=True)
def echo(
    text: str, number: int, share: float = 0.5, mood: Mood = Mood.GOOD, words: list[str] | None = None,
    loud: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Give back what it was given.

    Args:
        text: what to say
        number: how often
    """
    return {"text": text.upper() if loud else text, "number": number, "share": share, "mood": mood, "words": words}


@tool(read_only=True)
def weigh(file: Annotated[Path, File]) -> int:
    """Say how large a file is."""
    return file.stat().st_size


@tool(read_only=True)
def count(n: int, context: ToolContext) -> list[str]:
    """Count, and say how far it is."""
    for number in range(n):
        context.progress(number + 1, n, f"at {number}")
    return [str(number) for number in range(n)]


DESK = [read, write, picture, echo, weigh, count]
