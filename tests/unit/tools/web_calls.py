"""Calling a tool of a set where it is, as the tests of the web do."""

from __future__ import annotations

from typing import Any

import anyio

from callboard.actors.tools.outcome import Outcome
from callboard.actors.tools.tool import Tool


def called(tools: list[Tool], name: str, **arguments: Any) -> Outcome:
    async def main() -> Outcome:
        tool = next(tool for tool in tools if tool.info.name == name)
        try:
            return await tool.call(arguments)
        finally:
            if tool.once.is_ready:
                await tool.close()

    return anyio.run(main)
