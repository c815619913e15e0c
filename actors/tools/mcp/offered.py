"""What the company offers to an MCP host, from whatever it comes: tools, models, agents. Each is one MCP tool."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import mcp_types

from ....schemas.tool import Media, MediaKind, ToolAnnotations

if TYPE_CHECKING:
    from ....runtime.blobs import Blobs

# Hosts hand names on to models' APIs, which take no dots and no more than this.
MAX_NAME = 64
# Media of a result go into one JSON message as base64: beyond so many bytes they are told of, not sent.
MAX_MEDIA = 24 << 20

Say = Callable[[float, float, str], Awaitable[None]]


class Offer(Protocol):
    """One thing that a host may call."""

    @property
    def tool(self) -> mcp_types.Tool: ...

    async def call(self, arguments: dict[str, Any], say: Say) -> mcp_types.CallToolResult:
        """Raises CallboardError, which the host's model reads. `say` tells how far it is."""
        ...


class Source(Protocol):
    """Something that has offers: the directory of tools, the engines, the agents."""

    async def offers(self) -> list[Offer]: ...


@dataclass(frozen=True)
class OutputForm:
    """MCP's structured results are objects: what is another kind of value goes into one, as `result`."""

    schema: dict[str, Any] | None
    is_wrapped: bool

    @classmethod
    def of(cls, schema: str) -> OutputForm:
        found: Any = json.loads(schema or "{}")
        if not isinstance(found, dict) or not found:
            return cls(None, False)
        if found.get("type") == "object":
            return cls(found, False)
        found = dict(found)
        definitions = {key: found.pop(key) for key in ("$defs", "definitions") if key in found}
        wrapped = {"type": "object", "properties": {"result": found}, "required": ["result"], **definitions}
        # A reference to the whole would now mean another whole.
        return cls(None, False) if '"$ref": "#"' in json.dumps(found) else cls(wrapped, True)

    def structured(self, value: str) -> Any:
        if self.schema is None:
            return None
        found = json.loads(value)
        return {"result": found} if self.is_wrapped else found


def host_name(name: str, taken: Mapping[str, Any]) -> str:
    """A name that hosts take, and that no other offer has."""
    found = re.sub(r"[^A-Za-z0-9_-]", "_", name) or "tool"
    if len(found) > MAX_NAME or found in taken:
        found = f"{found[: MAX_NAME - 9]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return found


def hints_of(annotations: ToolAnnotations) -> mcp_types.ToolAnnotations:
    return mcp_types.ToolAnnotations(
        title=annotations.title or None,
        read_only_hint=annotations.read_only,
        destructive_hint=annotations.destructive,
        idempotent_hint=annotations.idempotent,
        open_world_hint=annotations.open_world,
    )


async def blocks_of(media: tuple[Media, ...], blobs: Blobs) -> list[Any]:
    """Media as content blocks, in their order; a medium that is too large for a message is named in a text."""
    blocks: list[Any] = []
    left = MAX_MEDIA
    for each in media:
        left -= each.blob.size
        if left < 0:
            blocks.append(
                mcp_types.TextContent(
                    text=f"[{each.kind.value} {each.name}, {each.mime}, {each.blob.size} bytes: too large to send]"
                )
            )
            continue
        data = base64.b64encode(await blobs.get(each.blob)).decode()
        if each.kind is MediaKind.IMAGE:
            blocks.append(mcp_types.ImageContent(data=data, mime_type=each.mime))
        elif each.kind is MediaKind.AUDIO:
            blocks.append(mcp_types.AudioContent(data=data, mime_type=each.mime))
        else:
            resource = mcp_types.BlobResourceContents(
                uri=f"callboard://media/{each.blob.digest[:16]}/{_quoted(each.name)}", mime_type=each.mime, blob=data
            )
            blocks.append(mcp_types.EmbeddedResource(resource=resource))
    return blocks


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")
