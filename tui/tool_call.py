"""Calling a tool from a form: media from files of this machine, and bytes of what comes back."""

from __future__ import annotations

import json
import mimetypes
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import msgspec

from ..runtime.errors import BlobError, CallboardError, Forbidden, NoSuchActor
from ..schemas.tool import CallTool, GetMedia, Media, MediaKind, PutMedia, ToolInfo, ToolPiece, ToolProgress, ToolResult
from .session import Session

# Beyond the tool's own time limit: for its setup, which may load a model, and for waiting behind other calls.
PATIENCE_S = 300.0
ARGUMENTS_TTL_S = 3600.0
MAX_FILE = 1 << 30
# A tool's word for bytes that are on another host than it, and how they get there.
MEDIA_AWAY = "tool.media_away"
PIECE = 512 * 1024
PIECE_TIMEOUT_S = 60.0


class FileTooLarge(CallboardError):
    code = "tui.file"


def json_object(text: str) -> dict[str, Any]:
    """A schema, or arguments, as values; of what is none an empty one: it is shown, not judged."""
    try:
        value = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Received:
    """A medium of a result."""

    name: str
    kind: MediaKind
    mime: str
    data: bytes


async def call_tool(
    session: Session,
    info: ToolInfo,
    values: Mapping[str, Any],
    on_item: Callable[[ToolProgress | ToolPiece], None],
) -> tuple[ToolResult, list[Received]]:
    """`values` as a form gives them: Paths stand for media. Raises ToolError and what else the call does."""
    media: list[Media] = []
    arguments = await _with_media(session, values, info, media)
    blobs = session.client.blobs

    async def call(media: Sequence[Media]) -> ToolResult:
        message = CallTool(json.dumps(arguments, ensure_ascii=False), tuple(media))
        async with session.stream(info.address, message, info.timeout + PATIENCE_S) as items:
            async for item in items:
                on_item(item)
        return items.result

    try:
        try:
            result = await call(media)
        except CallboardError as error:
            if error.to_info().code != MEDIA_AWAY:
                raise
            # Nothing was run: the tool cannot fetch what lies with us, and gets it in pieces.
            result = await call([await _sent(session, info.address, each) for each in media])
    finally:
        for each in media:
            await blobs.release(each.blob)
    return result, [await received(session, info.address, each) for each in result.media]


async def _sent(session: Session, tool: str, media: Media) -> Media:
    """The same medium with its bytes at the tool."""
    if not media.blob.id:  # they are in the message
        return media
    data = await session.client.blobs.get(media.blob)
    upload = secrets.token_hex(16)
    for start in range(0, len(data), PIECE):
        piece = PutMedia(upload, start, len(data), data[start : start + PIECE])
        answer = await session.ask(tool, piece, PIECE_TIMEOUT_S)
        if answer.blob is not None:
            return msgspec.structs.replace(media, blob=answer.blob)
    return media


async def _with_media(session: Session, value: Any, info: ToolInfo, media: list[Media]) -> Any:
    if isinstance(value, Path):
        data = await anyio.to_thread.run_sync(_read, value)
        name = f"{len(media)}-{re.sub(r'[^A-Za-z0-9._-]', '_', value.name)}"
        mime = mimetypes.guess_type(value.name)[0] or "application/octet-stream"
        media.append(Media(name, _kind(mime), mime, await session.client.blobs.put(data, ttl=ARGUMENTS_TTL_S)))
        return name
    if isinstance(value, Mapping):
        return {key: await _with_media(session, inner, info, media) for key, inner in value.items()}
    if isinstance(value, list):
        return [await _with_media(session, inner, info, media) for inner in value]
    return value


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE:
            raise FileTooLarge(f"{path} is over {MAX_FILE >> 30} GiB")
        return path.read_bytes()
    except OSError as error:
        raise FileTooLarge(f"{path} cannot be read: {error}") from error


def _kind(mime: str) -> MediaKind:
    return {"image": MediaKind.IMAGE, "audio": MediaKind.AUDIO}.get(mime.partition("/")[0], MediaKind.FILE)


async def received(session: Session, tool: str, media: Media) -> Received:
    """The bytes of a medium; those on another host come by way of the tool. Raises BlobGone and the like."""
    blobs = session.client.blobs
    if await blobs.is_here(media.blob):
        data = await blobs.get(media.blob)
    else:
        try:
            parts: list[bytes] = []
            async with session.stream(tool, GetMedia(media.blob.id)) as items:
                async for item in items:
                    parts.append(item.data)
            data = b"".join(parts)
        except (NoSuchActor, Forbidden, BlobError):  # its process has gone: whoever keeps the bytes may still be there
            data = await blobs.get(media.blob)
    return Received(media.name, media.kind, media.mime, data)


def save(one: Received, folder: Path) -> Path:
    """Into a file of a name that is free. A name of a tool leads nowhere but into that folder. Raises OSError."""
    name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(one.name).name).lstrip(".") or "file"
    if not Path(name).suffix:
        name += mimetypes.guess_extension(one.mime) or ""
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = Path(name).stem, Path(name).suffix
    number = 0
    while True:
        path = folder / (f"{stem}-{number}{suffix}" if number else name)
        try:
            with path.open("xb") as file:
                file.write(one.data)
            return path
        except FileExistsError:
            number += 1
