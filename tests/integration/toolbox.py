"""Tools that the tests of tools run in processes of their own: they do what such a test asks for."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio

from callboard import Audio, File, Image, Tool, ToolContext, ToolError, tool

THIS_FILE = str(Path(__file__))


def note(path: str, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


@tool(read_only=True, tags=("math",))
async def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b


@tool
def add_in_thread(a: int, b: int = 1) -> int:
    """Add two numbers in a thread."""
    return a + b


@tool
def lie() -> int:
    """Give back what is no number."""
    return "three"  # pyright: ignore[reportReturnType]


@tool
def refuse(reason: str) -> str:
    """Say no."""
    raise ToolError(f"no: {reason}", hint="ask for something else")


class OwnError(ToolError):
    code = "tool.toolbox.own"


@tool
def refuse_in_its_own_way() -> str:
    """Say no by an error of its own kind."""
    raise OwnError("no, in its own way", hint="ask otherwise")


@tool
def fail() -> str:
    """Raise what nobody foresaw."""
    raise ZeroDivisionError("one over nothing")


@tool
def pid() -> int:
    """Say which process this is."""
    return os.getpid()


@tool
def die(code: int = 9) -> str:
    """End the process of this tool in mid-call."""
    os.kill(os.getpid(), signal.Signals(code))
    threading.Event().wait()
    return ""


@tool(timeout=0.3, concurrency=2)
def hang() -> str:
    """Never come back, whatever anybody says."""
    threading.Event().wait()
    return ""


@tool(timeout=0.5)
async def block() -> str:
    """Stand on the event loop."""
    time.sleep(600)  # noqa: ASYNC251  # what this tool is for
    return ""


@tool(timeout=30.0, concurrency=2)
def wait_for(path: str, context: ToolContext) -> str:
    """Wait until a file is there, or the call is given up; then say so in `<path>.over`."""
    Path(f"{path}.began").touch()
    while not Path(path).exists():
        if context.wait(0.01):
            Path(f"{path}.over").write_text("cancelled")
            context.check()
    Path(f"{path}.over").write_text("done")
    return "done"


@tool(concurrency=4)
async def tally(path: str) -> str:
    """Note that this began, wait until a file is there, and say how often it has begun; write `<path>.over` when it is
    cancelled."""
    note(f"{path}.began", "x")
    try:
        while not await anyio.Path(path).exists():
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        note(f"{path}.over", "cancelled")
        raise
    return str(len(await anyio.Path(f"{path}.began").read_text()))


@tool(concurrency=4)
async def wait_on_loop(path: str) -> str:
    """Wait for ever on the event loop; write `<path>.over` when it is cancelled."""
    note(f"{path}.began", "")
    try:
        await asyncio.Event().wait()
    finally:
        note(f"{path}.over", "cancelled")
    return ""


@tool
def large(size: int) -> str:
    """Give back a long text."""
    return "x" * size


@tool
def count(n: int, context: ToolContext) -> Iterator[str]:
    """Count, and say how far it is."""
    for number in range(n):
        context.progress(number + 1, n, f"at {number}")
        yield f"{number} "


@tool
async def count_on_loop(n: int) -> AsyncIterator[str]:
    """Count on the event loop."""
    for number in range(n):
        yield f"{number} "


@tool
def show(n: int) -> Iterator[File]:
    """Yield pictures, a sound that is too large for a message, and a file."""
    import numpy as np
    import PIL.Image

    for number in range(n):
        yield Image.from_pil(PIL.Image.new("RGB", (8 << number, 4), (255, 0, 0)), name=f"picture {number}")
    yield Audio.from_array(np.linspace(-1, 1, 100_000, dtype=np.float32), 8000, name="sound")
    yield File.from_bytes(b"the end", "text/plain", "end.txt")


@tool
def mirror(image: Image) -> Image:
    """Give an image back."""
    return Image.from_bytes(image.view, image.mime, name="back")


@tool
def grey(image: Image) -> Image:
    """Make an image grey."""
    return Image.from_pil(image.pil().convert("L"), name="grey.png")


@tool
def sizes(files: list[Annotated[Path, File]], context: ToolContext) -> dict[str, Any]:
    """Say how large files are, and leave a report."""
    report = context.scratch / "report.txt"
    report.write_text("\n".join(str(file.stat().st_size) for file in files))
    return {"sizes": [file.stat().st_size for file in files], "scratch": str(context.scratch)}


@tool
def report(text: str, context: ToolContext) -> Annotated[Path, File]:
    """Write a report to a file of the call's own."""
    path = context.scratch / "report.txt"
    path.write_text(text)
    return path


class Model(Tool, concurrency=2):
    """Answer from what was loaded, once that works."""

    def setup(self) -> None:
        if os.environ.get("TOOLBOX_SETUP") and not Path(os.environ["TOOLBOX_SETUP"]).exists():
            raise OSError("the weights are not there")
        self.loaded = os.getpid()

    def run(self, text: str) -> str:
        return f"{text} {self.loaded}"


calculator = add.named("calculator")
PAIR = [add, pid]
