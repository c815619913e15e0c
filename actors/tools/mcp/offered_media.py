"""Media that a host sends. JSON has no place for bytes, so a host's model writes a data URI, or, where the server was
told which folders it may read, a file's path; the schema of an argument says so."""

from __future__ import annotations

import base64
import binascii
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import anyio

from ....schemas.tool import Media, MediaKind
from ..errors import ToolArguments
from ..values import File, sniffed_mime

if TYPE_CHECKING:
    from ....runtime.blobs import Blobs

_KINDS = {kind.value: kind for kind in MediaKind}
MAX_FILE = 256 << 20
# A medium is there for the call that it came with.
TTL_S = 600.0


def explained(schema: dict[str, Any], *, files: bool) -> dict[str, Any]:
    """An input schema in which each medium says how it is written."""
    how = "a data: URI (data:TYPE;base64,...)" + (" or the path of a file" if files else "")
    found = copy.deepcopy(schema)

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            kind = node.get("format")
            if isinstance(kind, str) and kind in _KINDS and node.get("type") == "string":
                del node["format"]
                node["description"] = " ".join(filter(None, [node.get("description", ""), f"({kind}: {how})"]))
            for inner in node.values():
                visit(inner)
        elif isinstance(node, list):
            for inner in node:
                visit(inner)

    visit(found)
    return found


class MediaIn:
    """Puts the media of one call's arguments into blobs. `roots`: folders whose files may be named."""

    def __init__(self, blobs: Blobs, schema: dict[str, Any], roots: tuple[Path, ...] = ()) -> None:
        self._blobs = blobs
        self._schema = schema
        self._roots = roots
        self.media: list[Media] = []

    async def read(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments with names in the place of media. Raises ToolArguments."""
        return await self._visit(arguments, self._schema, "$")

    async def _visit(self, value: Any, part: Any, path: str) -> Any:
        part = self._resolved(part)
        if isinstance(value, str) and part.get("format") in _KINDS:
            return await self._put(value, _KINDS[part["format"]], path)
        if isinstance(value, dict):
            parts, others = part.get("properties") or {}, part.get("additionalProperties")
            return {
                key: await self._visit(inner, parts.get(key, others), f"{path}.{key}") for key, inner in value.items()
            }
        if isinstance(value, list):
            return [
                await self._visit(inner, part.get("items"), f"{path}[{index}]") for index, inner in enumerate(value)
            ]
        return value

    def _resolved(self, part: Any) -> dict[str, Any]:
        for _ in range(16):
            if not isinstance(part, dict):
                return {}
            options = [one for one in part.get("anyOf") or () if isinstance(one, dict) and one.get("type") != "null"]
            if "$ref" in part:
                part = (self._schema.get("$defs") or {}).get(str(part["$ref"]).rpartition("/")[2])
            elif len(options) == 1:
                part = options[0]
            else:
                return part
        return {}

    async def _put(self, text: str, kind: MediaKind, path: str) -> str:
        name = f"{kind.value}-{len(self.media) + 1}"
        if text.startswith("data:"):
            mime, data = _data_uri(text, path)
        else:
            file = await anyio.to_thread.run_sync(self._file, text, path)
            mime, data, name = file.mime, file.bytes(), f"{len(self.media) + 1}-{file.name}"
        blob = await self._blobs.put(data, ttl=TTL_S)
        self.media.append(Media(name, kind, mime or sniffed_mime(data[:16]) or "application/octet-stream", blob))
        return name

    def _file(self, text: str, path: str) -> File:
        how = "send it as a data: URI" + (", or name a file in a folder that may be read" if self._roots else "")
        place = Path(unquote(urlsplit(text).path) if text.startswith("file:") else text).expanduser()
        try:
            found = place.resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            found = None
        # One answer for what is not there and what is not to be seen: names of files are nobody's business either.
        if found is None or not found.is_file() or not any(found.is_relative_to(root) for root in self._roots):
            raise ToolArguments(f"{path}: no medium can be read from {text[:80]!r}", hint=how)
        if found.stat().st_size > MAX_FILE:
            raise ToolArguments(f"{path}: the file is over {MAX_FILE >> 20} MiB")
        return File.from_path(found)

    async def release(self) -> None:
        for each in self.media:
            await self._blobs.release(each.blob)


def _data_uri(text: str, path: str) -> tuple[str, bytes]:
    head, comma, body = text[5:].partition(",")
    mime, *marks = head.split(";")
    try:
        if not comma:
            raise ValueError("it has no comma")
        data = base64.b64decode(body, validate=True) if "base64" in marks else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise ToolArguments(f"{path}: this is no data URI: {error}", hint="data:image/png;base64,...") from None
    return mime.strip(), data
