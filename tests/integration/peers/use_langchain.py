"""What LangChain's tools and ours are to each other, with the real package; prints what came of it as JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Annotated, Any

from langchain_core.tools import InjectedToolArg, StructuredTool, ToolException
from langchain_core.tools import tool as langchain_tool
from pydantic import BaseModel, Field

from callboard import Image, ToolError, tool
from callboard.actors.tools.adapters.callee import company_tools
from callboard.actors.tools.adapters.langchain import from_langchain, to_langchain

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)


class Search(BaseModel):
    query: str = Field(description="what to look for")
    limit: int = Field(3, ge=1, description="how many")


@langchain_tool(args_schema=Search)
def search(query: str, limit: int = 3) -> list[str]:
    """Look for something."""
    return [f"{query} {number}" for number in range(limit)]


@langchain_tool
async def refuse(reason: str) -> str:
    """Say no."""
    raise ToolException(f"no: {reason}")


@langchain_tool(response_format="content_and_artifact")
def draw(text: str) -> tuple[Any, Any]:
    """Draw something."""
    image = {"type": "image", "base64": base64.b64encode(PIXEL).decode(), "mime_type": "image/png"}
    return [{"type": "text", "text": f"drew {text}"}, image], {"any": "thing"}


@langchain_tool
def whisper(text: str, key: Annotated[str, InjectedToolArg]) -> str:
    """Say it to whoever has the key."""
    return text


polite = StructuredTool.from_function(
    func=lambda reason: (_ for _ in ()).throw(ToolException(f"sorry: {reason}")),
    name="polite refusal",
    description="Say no, politely.",
    args_schema={"type": "object", "properties": {"reason": {"type": "string"}}, "required": ["reason"]},
    handle_tool_error=True,
)


@tool(read_only=True)
def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    if a < 0:
        raise ToolError("no negative numbers", hint="use positive ones")
    return a + b


@tool
def mirror(image: Image) -> Image:
    """Give an image back."""
    return Image.from_bytes(image.view, image.mime, name="back.png")


async def said_by(call: Any) -> str:
    try:
        return str((await call).value)
    except ToolError as error:
        return f"{type(error).__name__}: {error}"


async def theirs_as_ours() -> dict[str, Any]:
    ours = from_langchain(search, read_only=True)
    drawn = await from_langchain(draw).call({"text": "a dot"})
    return {
        "name": ours.info.name,
        "description": ours.info.description,
        "schema": json.loads(ours.info.input_schema),
        "read_only": ours.info.annotations.read_only,
        "value": json.loads((await ours.call({"query": "x", "limit": 2})).value),
        "wrong": await said_by(ours.call({"limit": 0})),
        "refused": await said_by(from_langchain(refuse).call({"reason": "why"})),
        "polite": [from_langchain(polite).info.name, await said_by(from_langchain(polite).call({"reason": "why"}))],
        "drawn": [drawn.text, drawn.value, [[file.mime, file.bytes() == PIXEL] for file in drawn.media.values()]],
        "injected": json.loads(from_langchain(whisper).info.input_schema)["properties"],
    }


def call_of(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "args": arguments, "id": "1", "type": "tool_call"}


async def ours_as_theirs() -> dict[str, Any]:
    theirs = to_langchain(add)
    message = await theirs.ainvoke(call_of("add", a=40, b=2))
    refused = await theirs.ainvoke(call_of("add", a=-1))
    shown = await to_langchain(mirror).ainvoke(call_of("mirror", image=PIXEL))
    return {
        "name": theirs.name,
        "schema": theirs.tool_call_schema,
        "content": message.content,
        "artifact": message.artifact.value,
        "refused": [refused.status, refused.content],
        "media": [block["type"] for block in shown.content],
        "same": base64.b64decode(shown.content[1]["base64"]) == PIXEL,
        "plain": await theirs.ainvoke({"a": 1}),
    }


def main() -> None:
    found: dict[str, Any] = {"theirs": asyncio.run(theirs_as_ours()), "ours": asyncio.run(ours_as_theirs())}
    # Without a loop, as scripts call tools.
    found["blocking"] = to_langchain(add).invoke({"a": 2, "b": 3})
    with company_tools(["box.add", "box.count*"], state_dir=sys.argv[1]) as tools:
        by_name = {one.info.name: to_langchain(one) for one in tools}
        found["company"] = {
            "names": sorted(one.name for one in by_name.values()),
            "added": by_name["box.add"].invoke({"a": 5, "b": 6}),
            "wrong": by_name["box.add"].invoke(call_of("box_add", a="many")).status,
            "awaited": asyncio.run(by_name["box.add"].ainvoke({"a": 7})),
        }
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
