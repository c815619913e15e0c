"""What smolagents' tools and ours are to each other, with the real package; prints what came of it as JSON."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from typing import Any, Literal

import PIL.Image
import smolagents
from smolagents.local_python_executor import LocalPythonExecutor

from callboard import File, Image, ToolError, tool
from callboard.actors.tools.adapters.callee import company_tools
from callboard.actors.tools.adapters.smolagents import from_smolagents, to_smolagents

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)


@smolagents.tool
def weather(city: str, days: int | None = None) -> str:
    """Say what the weather will be.

    Args:
        city: where
        days: how many days from now
    """
    if city == "Nowhere":
        raise ValueError("there is no such city")
    return f"{city} in {days or 0} days: rain"


class Grey(smolagents.Tool):
    name = "grey"
    description = "Make an image grey."
    inputs = {"image": {"type": "image", "description": "any image"}}  # noqa: RUF012
    output_type = "image"

    def setup(self) -> None:
        self.was_set_up = True
        super().setup()

    def forward(self, image: PIL.Image.Image) -> PIL.Image.Image:
        assert self.was_set_up
        return image.convert("L")


class Whole(smolagents.Tool):
    name = "whole"
    description = "Say which keys an object has."
    inputs = {"data": {"type": "object", "description": "any object"}}  # noqa: RUF012
    output_type = "array"

    def forward(self, data: dict) -> list:
        return sorted(data)


@tool(read_only=True)
def add(a: int, b: int = 1, how: Literal["plain", "loud"] = "plain") -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
        how: how to do it
    """
    if a < 0:
        raise ToolError("no negative numbers", hint="use positive ones")
    return a + b


@tool(name="class")
def classify(image: Image, label: str | None = None) -> dict[str, Any]:
    """Say what is in an image.

    Args:
        image: any image
        label: what it may be
    """
    return {"size": image.pil().size, "label": label}


@tool
def mirror(image: Image) -> Image:
    """Give an image back."""
    return Image.from_bytes(image.view, image.mime)


@tool
def report(text: str) -> File:
    """Write a report."""
    return File.from_bytes(text.encode(), "text/plain", "report.txt")


async def said_by(call: Any) -> str:
    try:
        return str((await call).value)
    except ToolError as error:
        return f"{type(error).__name__}: {error}"


async def theirs_as_ours() -> dict[str, Any]:
    ours = from_smolagents(weather)
    image = Image.from_bytes(PIXEL, "image/png", "a.png")
    grey = await from_smolagents(Grey()).call('{"image": "a.png"}', {"a.png": image})
    (made,) = grey.media.values()
    return {
        "schema": json.loads(ours.info.input_schema),
        "value": await said_by(ours.call({"city": "Ulm", "days": 2})),
        "left_out": await said_by(ours.call({"city": "Ulm"})),
        "null": await said_by(ours.call({"city": "Ulm", "days": None})),
        "wrong": await said_by(ours.call({"town": "Ulm"})),
        "failed": await said_by(ours.call({"city": "Nowhere"})),
        "grey": [made.mime, PIL.Image.open(io.BytesIO(made.bytes())).mode],
        "object": json.loads((await from_smolagents(Whole()).call({"data": {"data": 1, "b": 2}})).value),
        "image_schema": json.loads(from_smolagents(Grey()).info.input_schema)["properties"]["image"],
    }


def ours_as_theirs() -> dict[str, Any]:
    theirs, marked = to_smolagents(add), to_smolagents(classify)
    picture = PIL.Image.open(io.BytesIO(PIXEL))
    try:
        theirs(a=-1)
        refused = ""
    except ToolError as error:
        refused = str(error)
    # As a CodeAgent runs them: the code that a model wrote, in smolagents' own interpreter.
    executor = LocalPythonExecutor([])
    executor.send_tools({"add": theirs})
    ran = executor("add(40, b=2)")
    back = to_smolagents(mirror)(image=picture)
    return {
        "inputs": theirs.inputs,
        "output_type": theirs.output_type,
        "named": theirs(a=1, b=2),
        "by_place": theirs(1, 5),
        "left_out": theirs(a=1, b=None),
        "refused": refused,
        "ran": ran.output,
        "name": marked.name,
        "kinds": {name: [said["type"], said.get("nullable", False)] for name, said in marked.inputs.items()},
        "classified": marked(image=picture),
        "mirrored": [type(back).__name__ if isinstance(back, PIL.Image.Image) else "", list(back.size)],
        "mirror_type": to_smolagents(mirror).output_type,
        "report": open(to_smolagents(report)(text="all is well")).read(),
        "prompt": theirs.to_code_prompt(),
    }


def main() -> None:
    found: dict[str, Any] = {"theirs": asyncio.run(theirs_as_ours()), "ours": ours_as_theirs()}
    with company_tools(["box.add"], state_dir=sys.argv[1]) as tools:
        (one,) = map(to_smolagents, tools)
        found["company"] = [one.name, one(a=5, b=6)]
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
