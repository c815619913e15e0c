"""The tools of the company's directory, offered to a host."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mcp_types

from ....runtime.errors import NoSuchActor
from ....schemas.tool import CallTool, OpenTool, ToolInfo, ToolPiece, ToolResult
from ..client import ask_directory, list_tools
from .offered import Offer, OutputForm, Say, blocks_of, hints_of
from .offered_media import MediaIn, explained

if TYPE_CHECKING:
    from ....runtime.client import Client


class ToolSource:
    """`patterns`: names of those that are offered. `read_only`: those alone that change nothing. `roots`: folders whose
    files a host may name as media."""

    def __init__(
        self, bus: Client, patterns: Sequence[str] = ("*",), *, read_only: bool = False, roots: tuple[Path, ...] = ()
    ) -> None:
        self._bus = bus
        self._patterns = tuple(patterns)
        self._read_only = read_only
        self._roots = roots

    async def offers(self) -> list[Offer]:
        # Of two versions the later one, which is what its name alone means.
        found = {info.name: info for info in await list_tools(self._bus)}
        return [
            ToolOffer(self._bus, info, self._roots)
            for info in found.values()
            if any(fnmatchcase(info.name, pattern) for pattern in self._patterns)
            and (info.annotations.read_only or not self._read_only)
        ]


class ToolOffer:
    def __init__(self, bus: Client, info: ToolInfo, roots: tuple[Path, ...]) -> None:
        self._bus = bus
        self._info = info
        self._roots = roots
        self._schema: dict[str, Any] = json.loads(info.input_schema)
        self._form = OutputForm.of(info.output_schema)
        schema = explained(self._schema, files=bool(roots))
        schema.setdefault("type", "object")
        self.tool = mcp_types.Tool(
            name=info.name,
            title=info.annotations.title or None,
            description=info.description,
            input_schema=schema,
            output_schema=self._form.schema,
            annotations=hints_of(info.annotations),
        )

    async def call(self, arguments: dict[str, Any], say: Say) -> mcp_types.CallToolResult:
        media = MediaIn(self._bus.blobs, self._schema, self._roots)
        try:
            given = await media.read(arguments)
            message = CallTool(json.dumps(given), tuple(media.media))
            try:
                result = await self._asked(self._info.address or await self._opened(), message, say)
            except NoSuchActor:  # it was started anew elsewhere: nothing was delivered
                result = await self._asked(await self._opened(), message, say)
            blocks = await blocks_of(result.media, self._bus.blobs)
        finally:
            await media.release()
        text = [mcp_types.TextContent(text=result.text)] if result.text or not blocks else []
        structured = self._form.structured(result.value)
        return mcp_types.CallToolResult(content=[*text, *blocks], structured_content=structured)

    async def _opened(self) -> str:
        return (await ask_directory(self._bus.node, OpenTool(self._info.name))).address

    async def _asked(self, address: str, message: CallTool, say: Say) -> ToolResult:
        async with self._bus.actor(address).stream(message) as said:
            async for item in said:
                if isinstance(item, ToolPiece):
                    await say(0.0, 0.0, item.text)
                else:
                    await say(item.done, item.total, item.text)
        return said.result
