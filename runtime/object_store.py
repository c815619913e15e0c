"""The part of the bus adapter that keeps blobs in JetStream's object store, where any host can read them.

The layout is NATS's own (ADR-20), so `nats object ls` and `get` work on it. Reading and writing go past nats-py's
object store: its read is quadratic, and its write waits for each chunk. Here a bounded window of chunks is under way.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import secrets
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from .bus import Bus
from .errors import BlobError, BlobGone, BlobNoRoom, Disconnected, NoBlobStore

BUCKET = "callboard_blobs"
_STREAM = f"OBJ_{BUCKET}"

# Larger chunks are no faster, smaller ones cost more messages: 128 KiB take a third longer than these.
CHUNK = 512 * 1024
# Bytes on their way between the server and us. It keeps the connection busy, and bounds memory on both sides.
WINDOW = 8 * 1024 * 1024
# What headers and subject add to a chunk, at most.
_CHUNK_ROOM = 1024
# A server that says nothing for so long in the middle of an object is taken for gone.
STALL_S = 10.0
# Nothing stays longer, whatever becomes of those who should remove it.
MAX_AGE_S = 24 * 3600.0
# How long the server keeps the position of a reader that says nothing.
_READER_IDLE_S = 30.0

_NO_JETSTREAM = {10039, 10076, 10008}
_NO_ROOM = {10002, 10023, 10028, 10047, 10077}
_NOT_FOUND = {10037, 10059}
_IN_USE = 10058

_NANO = 1_000_000_000


class ObjectStore:
    """Objects by name in one bucket. Errors of every call: NoBlobStore, Disconnected."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._made = False

    @property
    def _client(self) -> Client:
        return self._bus.client

    async def write(self, name: str, size: int, pieces: AsyncIterable[bytes], ttl: float) -> None:
        """Store an object of `size` bytes, gone after `ttl` seconds.

        It is there once this returned; what a write that was cut short has stored goes by its `ttl`. Raises BlobNoRoom.
        """
        await self._make_bucket()
        ttl = max(1, min(ttl, MAX_AGE_S))
        expiry = {"Nats-TTL": str(int(ttl))}
        upload = secrets.token_hex(11)
        chunk = min(CHUNK, self._bus.max_payload - _CHUNK_ROOM)
        acks = _Acks(max(2, WINDOW // chunk))
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=acks.take)
        count, hashed = 0, hashlib.sha256()
        try:
            async for piece in _rechunked(pieces, chunk):
                hashed.update(piece)
                await acks.room()
                await self._publish(f"$O.{BUCKET}.C.{upload}", piece, inbox, expiry)
                count += 1
            await acks.all()
            meta = {
                "name": name,
                "bucket": BUCKET,
                "nuid": upload,
                "size": size,
                "chunks": count,
                "digest": f"SHA-256={base64.urlsafe_b64encode(hashed.digest()).decode()}",
                "options": {"max_chunk_size": chunk},
            }
            await acks.room()
            headers = {**expiry, "Nats-Rollup": "sub"}
            await self._publish(_meta_subject(name), json.dumps(meta).encode(), inbox, headers)
            await acks.all()
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()

    async def read(self, name: str) -> AsyncIterator[bytes]:
        """The object's bytes, in order. Raises BlobGone where it is not there, or goes while it is read."""
        meta = await self._find(name)
        asked = {
            "ack_policy": "none",
            "deliver_policy": "all",
            "filter_subject": f"$O.{BUCKET}.C.{meta['nuid']}",
            "inactive_threshold": int(_READER_IDLE_S * _NANO),
            "mem_storage": True,
            "num_replicas": 1,
        }
        reader = await self._api(f"CONSUMER.CREATE.{_STREAM}", {"stream_name": _STREAM, "config": asked})
        chunks: asyncio.Queue[bytes] = asyncio.Queue()

        async def take(message: Msg) -> None:
            if message.subject != inbox:  # else it is the server's word that a request for more is over
                chunks.put_nowait(message.data)

        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=take)
        size = max(1, meta["options"]["max_chunk_size"])
        batch = max(1, WINDOW // 2 // size)
        left, under_way = meta["chunks"], 0
        more = f"$JS.API.CONSUMER.MSG.NEXT.{_STREAM}.{reader['name']}"
        try:
            while left > 0:
                while under_way <= batch and under_way < left:
                    number = min(batch, left - under_way)
                    order = {"batch": number, "expires": int(2 * STALL_S * _NANO)}
                    await self._publish(more, json.dumps(order).encode(), inbox)
                    under_way += number
                try:
                    async with asyncio.timeout(STALL_S):
                        chunk = await chunks.get()
                except TimeoutError as error:
                    await self._find(name)
                    raise Disconnected(f"the object store fell silent in the middle of blob {name}") from error
                left, under_way = left - 1, under_way - 1
                yield chunk
        finally:
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
                await self._client.publish(f"$JS.API.CONSUMER.DELETE.{_STREAM}.{reader['name']}")

    async def delete(self, name: str) -> None:
        """Remove the object. Nothing happens where it is not there."""
        with contextlib.suppress(BlobGone):
            meta = await self._find(name)
            for subject in (_meta_subject(name), f"$O.{BUCKET}.C.{meta['nuid']}"):
                await self._api(f"STREAM.PURGE.{_STREAM}", {"filter": subject})

    async def _find(self, name: str) -> dict[str, Any]:
        found = await self._api(f"STREAM.MSG.GET.{_STREAM}", {"last_by_subj": _meta_subject(name)})
        return json.loads(base64.b64decode(found["message"]["data"]))

    async def _make_bucket(self) -> None:
        if self._made:
            return
        config = {
            "name": _STREAM,
            "subjects": [f"$O.{BUCKET}.C.>", f"$O.{BUCKET}.M.>"],
            "storage": "file",
            # What is on its way between two hosts need not outlive a power cut. Servers before 2.12 ignore this.
            "persist_mode": "async",
            "discard": "new",
            "max_age": int(MAX_AGE_S * _NANO),
            "allow_msg_ttl": True,  # servers before 2.11 know no time for a single message: there, `max_age` counts
            "allow_rollup_hdrs": True,
            "allow_direct": True,
            "num_replicas": 1,
        }
        with contextlib.suppress(_InUse):  # made by a version that thought otherwise of it: good enough
            await self._api(f"STREAM.CREATE.{_STREAM}", config)
        self._made = True

    async def _publish(self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None = None) -> None:
        try:
            await self._client.publish(subject, data, reply, headers)
        except nats.errors.Error as error:
            raise Disconnected(f"the object store cannot be reached: {error}") from error

    async def _api(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = await self._client.request(f"$JS.API.{call}", json.dumps(body).encode(), timeout=STALL_S)
        except nats.errors.NoRespondersError as error:
            raise NoBlobStore("the NATS server has no JetStream to keep blobs in") from error
        except (nats.errors.Error, TimeoutError) as error:
            raise Disconnected(f"the object store does not answer ({call})") from error
        found = json.loads(answer.data)
        if "error" in found:
            raise _typed(found["error"])
        return found


class _InUse(BlobError):
    """The bucket is there, with another configuration than ours."""


class _Acks:
    """Bounds how many chunks are unacknowledged, and hears what went wrong with one."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._under_way = 0
        self._error: BlobError | None = None
        self._news = asyncio.Event()

    async def take(self, message: Msg) -> None:
        self._under_way -= 1
        if message.headers is not None and message.headers.get("Status") == "503":
            self._error = NoBlobStore("the NATS server has lost the bucket that blobs are kept in")
        elif b'"error"' in message.data:
            self._error = _typed(json.loads(message.data)["error"])
        self._news.set()

    async def room(self) -> None:
        """Wait until one more may go, and count it. Raises what the server said of an earlier one."""
        await self._until(self._window - 1)
        self._under_way += 1

    async def all(self) -> None:
        await self._until(0)

    async def _until(self, most: int) -> None:
        while self._under_way > most and self._error is None:
            self._news.clear()
            try:
                async with asyncio.timeout(STALL_S):
                    await self._news.wait()
            except TimeoutError as error:
                raise Disconnected("the object store does not acknowledge what is sent to it") from error
        if self._error is not None:
            raise self._error


def _typed(error: dict[str, Any]) -> BlobError:
    code, words = error.get("err_code", 0), error.get("description", "an error without words")
    if code in _NOT_FOUND:
        return BlobGone("the blob is not in the object store")
    if code in _NO_JETSTREAM or (error.get("code") == 503 and code == 0):
        return NoBlobStore(f"the object store is not to be had: {words}")
    if code in _NO_ROOM:
        return BlobNoRoom(f"the object store takes no more: {words}")
    if code == _IN_USE:
        return _InUse(words)
    return BlobError(f"the object store refuses: {words} ({code})")


def _meta_subject(name: str) -> str:
    return f"$O.{BUCKET}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


async def _rechunked(pieces: AsyncIterable[bytes], size: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `size`, the last one excepted."""
    kept = b""
    async for piece in pieces:
        if not kept and len(piece) == size:
            yield piece
            continue
        view = memoryview(kept + piece if kept else piece)
        whole = len(view) - len(view) % size
        for start in range(0, whole, size):
            yield bytes(view[start : start + size])
        kept = bytes(view[whole:])
    if kept:
        yield kept
