"""What Lagent's actions and our tools are to each other, with the real package; prints what came of it as JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lagent.actions import ActionExecutor
from lagent.actions.base_action import BaseAction, tool_api
from lagent.schema import ActionReturn

from callboard import Image, ToolError, tool
from callboard.actors.tools.adapters.callee import company_tools
from callboard.actors.tools.adapters.lagent import from_lagent, to_lagent

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)


class Bold(BaseAction):
    """Make text bold."""

    def run(self, text: str, times: int = 1) -> str:
        """Make text bold.

        Args:
            text (str): the text
            times (int): how bold
        """
        if text == "fail":
            raise ValueError("that cannot be bold")
        return "**" * times + text + "**" * times


class Sums(BaseAction):
    """Sums of all kinds."""

    @tool_api
    def plus(self, a: float, b: float) -> dict:
        """Add.

        Args:
            a (float): the first
            b (float): the second
        """
        return {"sum": a + b}

    @tool_api
    def negative(self, a: int) -> int:
        """The opposite.

        Args:
            a (int): the number
        """
        return -a


class Draw(BaseAction):
    """Draw something."""

    def run(self, text: str) -> ActionReturn:
        """Draw something.

        Args:
            text (str): what to draw
        """
        path = Path(tempfile.mkdtemp()) / "drawn.png"
        path.write_bytes(PIXEL)
        result = [{"type": "text", "content": f"drew {text}"}, {"type": "image", "content": str(path)}]
        return ActionReturn(type="Draw", result=result)


@tool
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
def pixel() -> Image:
    """Give an image."""
    return Image.from_bytes(PIXEL, "image/png", "pixel.png")


async def said_by(call: Any) -> str:
    try:
        return str((await call).value)
    except ToolError as error:
        return f"{type(error).__name__}: {error}"


async def theirs_as_ours() -> dict[str, Any]:
    (bold,) = from_lagent(Bold())
    sums = from_lagent(Sums())
    drawn = await from_lagent(Draw())[0].call({"text": "a dot"})
    return {
        "name": bold.info.name,
        "schema": json.loads(bold.info.input_schema),
        "bold": await said_by(bold.call({"text": "x", "times": 2})),
        "failed": await said_by(bold.call({"text": "fail"})),
        "wrong": await said_by(bold.call({"texts": "x"})),
        "sums": [one.info.name for one in sums],
        "plus": await said_by(sums[0].call({"a": 1.5, "b": 2})),
        "negative": await said_by(sums[1].call({"a": 3})),
        "drawn": [drawn.text, [[name, file.mime, file.bytes() == PIXEL] for name, file in drawn.media.items()]],
    }


def ours_as_theirs() -> dict[str, Any]:
    alone, several = to_lagent(add), to_lagent(add, pixel, name="ours", description="Tools of ours.")
    executor = ActionExecutor(actions=[several])
    given = executor("ours.pixel", {})
    path = Path(given.result[1]["content"])
    done = alone('{"a": 40, "b": 2}')
    refused = alone('{"a": -1}')
    return {
        "description": alone.description,
        "done": [done.state, done.format_result(), done.type],
        "refused": [refused.state, refused.errmsg],
        "wrong": alone('{"c": 1}').state,
        "apis": [api["name"] for api in several.description["api_list"]],
        "added": executor("ours.add", '{"a": 1}').format_result(),
        "pixel": [given.result[1]["type"], path.read_bytes() == PIXEL],
        "nothing": int(several("{}", "nothing").state),
    }


def main() -> None:
    found: dict[str, Any] = {"theirs": asyncio.run(theirs_as_ours()), "ours": ours_as_theirs()}
    with company_tools(["box.add"], state_dir=sys.argv[1]) as tools:
        action = to_lagent(*tools)
        found["company"] = [action.name, action('{"a": 5, "b": 6}').format_result()]
    print(json.dumps(found, default=str))


if __name__ == "__main__":
    main()
