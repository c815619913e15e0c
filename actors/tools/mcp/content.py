"""What an MCP server gives back, as a result of ours: JSON, a text for a model, and media."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Awaitable, Callable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import mcp_types

from ....runtime.errors import CallboardError
from ....runtime.log import log
from ..errors import ToolError, ToolResultInvalid
from ..outcome import Outcome
from ..values import BY_KIND, File, kind_of

# Resources that a result only names, and that are read from the server for it.
MAX_LINKS = 16

Read = Callable[[str], Awaitable[mcp_types.ReadResourceResult]]


async def outcome_of(result: mcp_types.CallToolResult, read: Read, *, has_schema: bool) -> Outcome:
    """Raises ToolError where the result says that the call failed, ToolResultInvalid where it cannot be read.

    Structured content is the value as it is. Without it, the value is the text; the name of a medium where the result
    is that alone; else an object of `text` and the names of `media`.
    """
    texts: list[str] = []
    media: dict[str, File] = {}
    links = 0
    for block in result.content:
        if isinstance(block, mcp_types.TextContent):
            texts.append(block.text)
        elif isinstance(block, mcp_types.ImageContent | mcp_types.AudioContent):
            _add(media, _decoded(block.data), block.mime_type, "")
        elif isinstance(block, mcp_types.EmbeddedResource):
            _add_resource(media, texts, block.resource)
        else:
            links += 1
            await _follow(media, texts, block, read if links <= MAX_LINKS and not result.is_error else None)
    text = "\n".join(texts)
    if result.is_error:
        raise ToolError(text or "the tool failed and did not say why")
    if "structured_content" in result.model_fields_set and result.structured_content is not None:
        value: Any = result.structured_content
    elif has_schema:
        raise ToolResultInvalid("the tool announces structured results, and gave none")
    elif not media:
        value = text
    elif len(media) == 1 and not text:
        value = next(iter(media))
    else:
        value = {"text": text, "media": list(media)}
    encoded = json.dumps(value, ensure_ascii=False)
    shown = [f"[{file.kind.value} {name}, {file.mime}, {file.size} bytes]" for name, file in media.items()]
    return Outcome(encoded, "\n".join(filter(None, [text, *shown])) or encoded, media)


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ToolResultInvalid(f"the tool gave back media that are no base64: {error}") from None


def _add(media: dict[str, File], data: bytes, mime: str, name: str) -> None:
    kind = BY_KIND[kind_of(mime)]
    base = name or f"{kind.kind.value}-{len(media) + 1}"
    name, number = base, 1
    while name in media:
        number += 1
        name = f"{number}-{base}"
    media[name] = kind.from_bytes(data, mime, name)


def _add_resource(
    media: dict[str, File],
    texts: list[str],
    resource: mcp_types.TextResourceContents | mcp_types.BlobResourceContents,
) -> None:
    name = _name_of(resource.uri)
    if isinstance(resource, mcp_types.TextResourceContents):
        # A model reads it; who wants the file has it too.
        texts.append(resource.text)
        _add(media, resource.text.encode(), resource.mime_type or "text/plain", name)
    else:
        _add(media, _decoded(resource.blob), resource.mime_type or "", name)


def _name_of(uri: str) -> str:
    return PurePosixPath(unquote(urlsplit(uri).path)).name[:100]


async def _follow(media: dict[str, File], texts: list[str], link: mcp_types.ResourceLink, read: Read | None) -> None:
    """Read a resource from the server that named it. Where it does not give it, its name is what there is."""
    if read is not None:
        try:
            found = await read(link.uri)
        except CallboardError as error:
            log.info("the resource %s is not read: %s", link.name, error)
        else:
            for resource in found.contents:
                _add_resource(media, texts, resource)
            return
    texts.append(" ".join(filter(None, [f"[resource {link.name}]", link.uri, link.description or ""])))


def with_media(arguments: dict[str, Any], schema: dict[str, Any], media: Any) -> dict[str, Any]:
    """Arguments in which the names of media are replaced by their bytes: as base64 where the tool's schema says
    `contentEncoding: base64`, else as data URIs, which is how media are written into JSON."""
    if not media:
        return arguments
    return _filled(arguments, schema, media)


def _filled(value: Any, part: Any, media: Any) -> Any:
    part = part if isinstance(part, dict) else {}
    if isinstance(value, str) and value in media:
        file = media[value]
        data = base64.b64encode(file.view).decode()
        return data if part.get("contentEncoding") == "base64" else f"data:{file.mime};base64,{data}"
    if isinstance(value, dict):
        parts = part.get("properties", {})
        parts = parts if isinstance(parts, dict) else {}
        return {key: _filled(inner, parts.get(key), media) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, part.get("items"), media) for inner in value]
    return value
