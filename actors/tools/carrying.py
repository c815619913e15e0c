"""Media between hosts, in pieces by way of the tool itself.

A blob of another host is fetched through its node and the object store, to neither of which a process with the role
`tool` may speak. So a caller elsewhere sends the bytes to the tool before it calls, and asks it for those of a result.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator

from anyio.to_thread import run_sync

from ...runtime.blob_files import damaged
from ...runtime.blobs import Blobs
from ...runtime.errors import TooLarge
from ...runtime.piece_hash import digest_of
from ...runtime.refs import Ref
from ...schemas.blob import Blob
from ...schemas.tool import GetMedia, MediaPart, MediaPut, PutMedia
from .errors import ToolArguments

# Well within what any server takes in one message.
PIECE = 512 * 1024
# An upload that nobody goes on with is forgotten.
STALE_S = 60.0
MAX_UPLOADS = 64
PART_TIMEOUT_S = 60.0


class _Upload:
    """Pieces on their way into a blob."""

    def __init__(self, blobs: Blobs, size: int, ttl: float) -> None:
        self.received = 0
        self._size = size
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(4)
        self.put = asyncio.get_running_loop().create_task(blobs.put(self._all(), ttl=ttl, inline=False))
        self.put.add_done_callback(lambda task: task.cancelled() or task.exception())  # who waits hears of it
        self.stale: asyncio.TimerHandle | None = None

    async def _all(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            yield piece

    async def add(self, piece: bytes) -> Blob | None:
        """The blob once all is there. Raises what putting it does."""
        adding = asyncio.ensure_future(self._pieces.put(piece))
        await asyncio.wait([adding, self.put], return_when=asyncio.FIRST_COMPLETED)
        if not adding.done():
            adding.cancel()
            return await self.put  # it failed
        self.received += len(piece)
        if self.received < self._size:
            return None
        await self._pieces.put(None)
        return await self.put

    def end(self) -> None:
        self.put.cancel()
        if self.stale is not None:
            self.stale.cancel()


class Uploads:
    """What callers send to a tool. What is complete stays for `ttl` seconds, or until it is let go."""

    def __init__(self, blobs: Blobs, ttl: float, max_size: int) -> None:
        self._blobs = blobs
        self._ttl = ttl
        self._max_size = max_size
        self._uploads: dict[str, _Upload] = {}
        self._complete: dict[str, Blob] = {}

    async def take(self, message: PutMedia) -> MediaPut:
        """Raises TooLarge, ToolArguments for pieces that do not follow each other, BlobNoRoom."""
        upload = self._uploads.get(message.upload)
        if upload is None:
            if message.size > self._max_size:
                raise TooLarge(f"a medium of {message.size} bytes is over the limit of {self._max_size}")
            if len(self._uploads) >= MAX_UPLOADS:
                raise ToolArguments("too many media are on their way to this tool at once", hint="send fewer at once")
            upload = self._uploads[message.upload] = _Upload(self._blobs, message.size, self._ttl)
        if message.offset != upload.received:
            self.drop(message.upload)
            raise ToolArguments(f"the piece at {message.offset} does not follow the last, which ended elsewhere")
        if upload.stale is not None:
            upload.stale.cancel()
        try:
            blob = await upload.add(message.data)
        except BaseException:
            self.drop(message.upload)
            raise
        if blob is not None:
            self._uploads.pop(message.upload, None)
            self._complete[blob.id] = blob
        else:
            upload.stale = asyncio.get_running_loop().call_later(STALE_S, self.drop, message.upload)
        return MediaPut(upload.received, blob)

    async def let_go(self, blob_id: str) -> None:
        """The call that it was sent for is over."""
        blob = self._complete.pop(blob_id, None)
        if blob is not None:
            await self._blobs.release(blob)

    def drop(self, name: str) -> None:
        upload = self._uploads.pop(name, None)
        if upload is not None:
            upload.end()

    def close(self) -> None:
        for name in tuple(self._uploads):
            self.drop(name)


async def send(tool: Ref, data: memoryview) -> Blob:
    """Bytes to a tool of another host, as a blob there. Raises what the tool answers."""
    name = secrets.token_hex(16)
    for start in range(0, len(data), PIECE):
        piece = bytes(data[start : start + PIECE])
        answer = await tool.ask(PutMedia(name, start, len(data), piece), PART_TIMEOUT_S)
        if answer.blob is not None:
            return answer.blob
    raise ToolArguments("an empty medium needs no sending")


async def parts(blobs: Blobs, blob: Blob) -> AsyncGenerator[MediaPart]:
    """What a tool answers to who asks for a medium of its results."""
    async for piece in blobs.read(blob, PIECE):
        yield MediaPart(piece)


async def fetch(tool: Ref, blob: Blob) -> bytes:
    """A medium of a result from the tool that made it, checked. Raises BlobGone, BlobDamaged, what the tool answers."""
    found = bytearray()
    async with tool.stream(GetMedia(blob.id)) as said:
        async for part in said:
            found += part.data
            if len(found) > blob.size:
                raise damaged(blob)
    data = bytes(found)
    if len(data) != blob.size or await run_sync(digest_of, data) != blob.digest:
        raise damaged(blob)
    return data
