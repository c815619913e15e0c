"""The tools that `callboard bench tools` calls: they do nothing, so what is measured is the call."""

from __future__ import annotations

from ..tools.tool import tool
from ..tools.values import Image


@tool(read_only=True, concurrency=64)
async def nothing(number: int = 0) -> int:
    """Give a number back."""
    return number


@tool(read_only=True, concurrency=64)
def nothing_in_thread(number: int = 0) -> int:
    """Give a number back, from a thread."""
    return number


@tool(read_only=True)
def mirror(image: Image) -> Image:
    """Give an image back."""
    return Image.from_bytes(image.view, image.mime, name="back")


TOOLS = [nothing, nothing_in_thread, mirror]
MANY = [nothing.named(f"nothing-{number}") for number in range(500)]
