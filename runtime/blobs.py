"""Large values by reference: put them here, send the `Blob`, read it there.

A small value travels in the reference itself, a large one lies in a file that other processes of this host map, and
whoever asks for it from another host has its owner put a copy into the object store. So what is never read elsewhere
never crosses the bus.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
import weakref
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import msgspec
from anyio.to_thread import run_sync

from ..schemas.blob import Blob, ShareBlob
from .blob_files import NEVER, BlobFiles, Reader, Writer, damaged, sweep
from .errors import ActorStopped, BlobGone, Disconnected, NoSuchActor, NotReachable
from .folders import Paths
from .log import log
from .piece_hash import PieceHash, digest_of
from .settings import BlobSettings, load_settings

if TYPE_CHECKING:
    from .node import Node
    from .object_store import ObjectStore

# What is smaller goes in the message: a file costs more than so many bytes on the bus.
INLINE_MAX = 64 * 1024
PIECE = 1 << 20
# What the object store takes at once.
CHUNK = 512 * 1024
SWEEP_EVERY_S = 30.0
# A copy in the object store is there for whoever asked for it; the next one may ask again.
SHARED_S = 600.0
# Uploading a gigabyte takes its time.
SHARE_TIMEOUT_S = 120.0
# On the way out, for removing copies from the store, which go by themselves otherwise.
CLOSE_S = 2.0

Bytes = bytes | bytearray | memoryview


@dataclass
class _Held:
    blob: Blob
    count: int = 1


class Blobs:
    """The blobs of one node: those it put, and those of others that it holds.

    Who puts a blob holds it; sending it gives nothing away. The bytes go when nobody holds them any more, when their
    time is over, or when the processes that held them ended, however they ended. Errors of the calls that read:
    BlobGone, BlobDamaged, and for what is on another host NoBlobStore, Disconnected, DeadlineExceeded.
    """

    def __init__(self, node: Node, base: Path | None = None) -> None:
        self._node = node
        self._base = base
        self._settings: BlobSettings | None = None
        self._files: BlobFiles | None = None
        self._store: ObjectStore | None = None
        self._held: dict[str, _Held] = {}
        self._shared: dict[str, float] = {}
        self._locks: weakref.WeakValueDictionary[str, anyio.Lock] = weakref.WeakValueDictionary()
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def settings(self) -> BlobSettings:
        if self._settings is None:
            self._settings = (self._node.settings or load_settings()).blobs
        return self._settings

    @property
    def base(self) -> Path:
        if self._base is None:
            self._base = Paths.find().cache / "blobs"
        return self._base

    # Putting

    async def put(self, data: Bytes | AsyncIterable[bytes], *, ttl: float | None = None, inline: bool = True) -> Blob:
        """Keep bytes, or all that an asynchronous iterator gives, and return the reference to them.

        They are kept for `ttl` seconds at most (default: the setting `blobs.ttl`; `math.inf`: as long as somebody holds
        them). With `inline`, a small value becomes part of the reference, which then needs no holding. Cancelled or
        failing, it leaves nothing. Raises BlobNoRoom.
        """
        pieces = _once(data) if isinstance(data, Bytes) else aiter(data)
        head = bytearray()
        while inline:
            piece = await anext(pieces, None)
            if piece is None:
                return _inline(bytes(head))
            if len(head) + memoryview(piece).nbytes > INLINE_MAX:
                pieces = _after(head, piece, pieces)
                break
            head += piece
        return await self._put_file(pieces, ttl)

    async def _put_file(self, pieces: AsyncIterable[Bytes], ttl: float | None) -> Blob:
        files = await self._ready()
        blob_id = secrets.token_hex(16)
        writer = files.writer(blob_id, self._expires(ttl))
        try:
            await _write(writer, pieces)
            if writer.size == 0:
                writer.abandon()
                return _inline(b"")
            await run_sync(writer.finish)
        except BaseException:
            writer.abandon()
            raise
        blob = Blob(writer.digest, writer.size, blob_id, files.lease, self._node.name)
        self._held[blob_id] = _Held(blob)
        return blob

    # Reading

    @asynccontextmanager
    async def open(self, blob: Blob) -> AsyncIterator[memoryview]:
        """All the bytes at once, checked, without a copy: pages of the file. Valid within the block.

        What is on another host is brought into a file here first.
        """
        if not blob.id:
            yield memoryview(_checked(blob))
            return
        reader = await self._open_here(blob)
        try:
            mapped = await run_sync(reader.map)
        finally:
            await run_sync(reader.close)
        view = memoryview(mapped)
        try:
            yield view
        finally:
            view.release()
            with contextlib.suppress(BufferError):  # somebody kept a part of it: the pages stay until that goes
                mapped.close()

    async def read(self, blob: Blob, size: int = PIECE) -> AsyncIterator[bytes]:
        """The bytes in pieces of up to `size`, in constant memory.

        The hash covers all of them, so BlobDamaged comes after the last piece: act on nothing before the end.
        """
        if not blob.id:
            data = _checked(blob)
            for start in range(0, len(data), size):
                yield data[start : start + size]
            return
        reader = await run_sync((await self._ready()).open, blob)
        if reader is None:
            async for piece in self._from_afar(blob):
                for start in range(0, len(piece), size):
                    yield piece[start : start + size]
            return
        try:
            while piece := await run_sync(reader.read, size):
                yield piece
        finally:
            reader.close()

    async def get(self, blob: Blob) -> bytes:
        """All the bytes, checked, in memory of our own."""
        return b"".join([piece async for piece in self.read(blob)])

    async def is_here(self, blob: Blob) -> bool:
        """Whether its bytes are in the reference or on this host, so that reading them asks nobody."""
        if not blob.id:
            return True
        reader = await run_sync((await self._ready()).open, blob)
        if reader is not None:
            await run_sync(reader.close)
        return reader is not None

    # Holding

    async def hold(self, blob: Blob, *, ttl: float | None = None) -> None:
        """Keep a blob of somebody else (or once more our own) until `release`, and for `ttl` seconds from now.

        What is on another host is copied here. Raises BlobGone where it is too late.
        """
        if not blob.id:
            return
        files = await self._ready()
        async with self._lock(blob.id):
            if not await run_sync(files.hold, blob, self._expires(ttl)):
                await self._bring(blob, self._expires(ttl))
            self._held.setdefault(blob.id, _Held(blob, 0)).count += 1

    async def adopt(self, blob: Blob, *, ttl: float | None = None) -> Blob:
        """`hold`, and a reference that names this node as the one to ask for it from another host.

        For what comes from a process that may not put it where other hosts read it.
        """
        if not blob.id:
            return blob
        await self.hold(blob, ttl=ttl)
        files = await self._ready()
        own = self._held[blob.id].blob = msgspec.structs.replace(blob, lease=files.lease, owner=self._node.name)
        return own

    async def release(self, blob: Blob) -> None:
        """Let go what `put` or `hold` held, once. Nothing happens where it is not held: its time may be over."""
        if blob.id not in self._held:
            return
        files = await self._ready()
        async with self._lock(blob.id):
            held = self._held.get(blob.id)
            if held is None:
                return
            if held.count == 1:
                await run_sync(files.drop, blob.id)
                del self._held[blob.id]
                await self._unshare(blob.id)
            held.count -= 1

    @property
    def held(self) -> int:
        """How many blobs this node holds."""
        return len(self._held)

    # For other hosts

    async def share(self, blob_id: str) -> float:
        """Put a copy of a blob that we hold into the object store. Returns for how many seconds it is there.

        Raises BlobGone, NoBlobStore, BlobNoRoom, Disconnected.
        """
        files = await self._ready()
        async with self._lock(blob_id):
            left = self._shared.get(blob_id, 0.0) - time.monotonic()
            if left > SHARED_S / 2:
                return left
            held = self._held.get(blob_id)
            reader = await run_sync(files.open, held.blob) if held is not None else None
            if held is None or reader is None:
                raise BlobGone(f"blob {blob_id} is not held by node {self._node.name} any more")
            blob = held.blob
            try:
                await self._object_store().write(blob.id, blob.size, _chunks(reader), SHARED_S)
            finally:
                reader.close()
            self._shared[blob_id] = time.monotonic() + SHARED_S
            return SHARED_S

    async def _unshare(self, blob_id: str) -> None:
        if self._shared.pop(blob_id, None) is not None:
            with contextlib.suppress(Disconnected):  # then it goes when its time is over
                await self._object_store().delete(blob_id)

    async def _from_afar(self, blob: Blob) -> AsyncIterator[bytes]:
        """The bytes of a blob that is on another host, checked at the end."""
        if self._node.links is None or blob.owner == self._node.name:
            raise BlobGone(f"blob {blob.id} of node {blob.owner} is gone")
        try:
            await self._node.actor(f"node.{blob.owner}").ask(ShareBlob(blob.id), SHARE_TIMEOUT_S)
        except (NoSuchActor, ActorStopped) as error:
            raise BlobGone(f"blob {blob.id} went with its owner, node {blob.owner}") from error
        checked, size = PieceHash(), 0
        async for piece in self._object_store().read(blob.id):
            checked.update(piece)
            size += len(piece)
            if size > blob.size:
                break
            yield piece
        if size != blob.size or checked.hexdigest() != blob.digest:
            raise damaged(blob)

    async def _bring(self, blob: Blob, expires: float) -> None:
        """Copy it from another host into a file that we hold."""
        writer = (await self._ready()).writer(blob.id, expires)
        try:
            await _write(writer, self._from_afar(blob))
            await run_sync(writer.finish)
        except BaseException:
            writer.abandon()
            raise

    async def _open_here(self, blob: Blob) -> Reader:
        files = await self._ready()
        reader = await run_sync(files.open, blob)
        if reader is None:
            await self.hold(blob)
            try:
                reader = await run_sync(files.open, blob)
            finally:
                await self.release(blob)
        if reader is None:
            raise BlobGone(f"blob {blob.id} of node {blob.owner} is gone")
        return reader

    # The rest

    async def sweep(self) -> int:
        """Remove what dead processes of this host left, and what is past its time. Returns how much went."""
        return await run_sync(sweep, self.base)

    async def tidy(self) -> None:
        """`sweep`, for where nobody waits for it."""
        try:
            await self.sweep()
        except OSError as error:
            log.warning("the blobs below %s cannot be swept: %s", self.base, error)

    async def close(self) -> None:
        """Let go everything that is held."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        with anyio.move_on_after(CLOSE_S):
            for blob_id in tuple(self._shared):
                await self._unshare(blob_id)
        if self._files is not None:
            files, self._files = self._files, None
            self._held.clear()
            with anyio.CancelScope(shield=True):
                await run_sync(files.end)

    def begin(self) -> None:
        """Sweep now and then, from now on."""
        if self._sweeper is None:
            self._sweeper = self._node.loop.create_task(self._sweep_on())

    async def _sweep_on(self) -> None:
        while True:
            await self.tidy()
            await anyio.sleep(SWEEP_EVERY_S)  # the sweep's own period

    async def _ready(self) -> BlobFiles:
        if self._files is None:
            self._files = BlobFiles(self.base)  # a few system calls, once
            self.begin()
        return self._files

    def _object_store(self) -> ObjectStore:
        if self._store is None:
            from .object_store import ObjectStore

            if self._node.links is None:
                raise NotReachable("this node is alone: it was started without a bus")
            self._store = ObjectStore(self._node.links.bus)
        return self._store

    def _lock(self, blob_id: str) -> anyio.Lock:
        return self._locks.setdefault(blob_id, anyio.Lock())

    def _expires(self, ttl: float | None) -> float:
        seconds = self.settings.ttl if ttl is None else ttl
        return NEVER if seconds == math.inf else min(NEVER, time.time() + seconds)


def _inline(data: bytes) -> Blob:
    return Blob(digest_of(data), len(data), data=data)


def _checked(blob: Blob) -> bytes:
    if len(blob.data) != blob.size or digest_of(blob.data) != blob.digest:
        raise damaged(blob)
    return blob.data


async def _write(writer: Writer, pieces: AsyncIterable[Bytes]) -> None:
    """In steps large enough for a hop to a thread each."""
    kept = bytearray()
    async for piece in pieces:
        if not kept and memoryview(piece).nbytes >= PIECE:
            await run_sync(writer.write, piece)
            continue
        kept += piece
        if len(kept) >= PIECE:
            await run_sync(writer.write, kept)
            kept = bytearray()
    if kept:
        await run_sync(writer.write, kept)


async def _once(data: Bytes) -> AsyncIterator[Bytes]:
    yield data


async def _after(head: bytearray, piece: Bytes, rest: AsyncIterator[Bytes]) -> AsyncIterator[Bytes]:
    """What was read already, and the rest."""
    if head:
        yield head
    yield piece
    async for more in rest:
        yield more


async def _chunks(reader: Reader) -> AsyncIterator[bytes]:
    """As the store takes them. Not checked here: who reads them does."""
    while chunk := await run_sync(reader.read_unchecked, CHUNK):
        yield chunk
