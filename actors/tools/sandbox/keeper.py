"""Keeps sessions of sandboxes in the company's store, where every node finds them.

A process in the role `tool` may not use the store, so it asks this actor, below the directory of tools. A session is a
head, which names the parts and holds the first, and the other parts: the head is written last, and with
compare-and-set, so a session is the old one or the new one, and of two owners one finds that the other was there.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import msgspec

from ....runtime.actor import Actor, handler
from ....runtime.buckets import Bucket
from ....runtime.errors import Conflict
from ....schemas.tool_session import DropSession, GetSession, KeepSession, SessionKept, SessionPart
from .errors import SandboxError, SessionMoved

BUCKET = "callboard_sandbox_sessions"
# Their first parts wait in memory.
MOST_UNDER_WAY = 64
_DAY_S = 86400.0


class KeeperConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`forget_days`: so long after its last call a session goes. `max_bytes`: the oldest go where all take more."""

    forget_days: float = 30.0
    max_bytes: int = 4 << 30


class _Head(msgspec.Struct, frozen=True, array_like=True):
    upload: str
    num_parts: int
    first: bytes


class SessionKeeper(Actor[KeeperConfig]):
    """Its handlers take turns: a session's parts come in order, from one owner."""

    async def started(self) -> None:
        self._bucket: Bucket | None = None
        self._firsts: OrderedDict[str, bytes] = OrderedDict()  # of sessions whose other parts are on their way

    async def _open(self) -> Bucket:
        """The store is touched when the first session is there to be kept."""
        if self._bucket is None:
            ttl_s = self.config.forget_days * _DAY_S
            self._bucket = await Bucket.open(self.node, BUCKET, ttl_s=ttl_s, max_bytes=self.config.max_bytes)
        return self._bucket

    @handler
    async def keep(self, message: KeepSession) -> SessionKept:
        """Raises SessionMoved, SandboxError, StoreError."""
        bucket, key = await self._open(), session_key(message.owner, message.session)
        upload = session_key(key, message.upload)
        if message.part == 0:
            self._firsts[upload] = message.data
            if len(self._firsts) > MOST_UNDER_WAY:
                self._firsts.popitem(last=False)
        else:
            await bucket.put(_part(upload, message.part), message.data)
        if message.part + 1 < message.num_parts:
            return SessionKept()
        before = await bucket.get(key)
        if (first := self._firsts.pop(upload, None)) is None:
            raise SandboxError("the first part of the session is not here any more", hint="send all of it again")
        head = _Head(upload, message.num_parts, first)
        try:
            revision = await bucket.put(key, msgspec.msgpack.encode(head), message.revision)
        except Conflict as error:
            raise SessionMoved("another owner has written this session meanwhile") from error
        if before is not None:
            await self._drop_parts(bucket, before.data)
        return SessionKept(revision)

    @handler
    async def get(self, message: GetSession) -> SessionPart:
        """Raises SessionMoved where it was written anew since its first part was read."""
        bucket, key = await self._open(), session_key(message.owner, message.session)
        kept = await bucket.get(key)
        if kept is None:
            return SessionPart()
        if message.revision not in (0, kept.revision):
            raise SessionMoved("the session was written anew while it was read")
        head = msgspec.msgpack.decode(kept.data, type=_Head)
        if message.part == 0:
            return SessionPart(head.num_parts, head.first, kept.revision)
        part = await bucket.get(_part(head.upload, message.part))
        if part is None:
            raise SessionMoved("a part of the session has gone from the store")
        return SessionPart(head.num_parts, part.data, kept.revision)

    @handler
    async def drop(self, message: DropSession) -> SessionKept:
        bucket, key = await self._open(), session_key(message.owner, message.session)
        kept = await bucket.get(key)
        if kept is not None:
            await bucket.delete(key)
            await self._drop_parts(bucket, kept.data)
        return SessionKept()

    async def _drop_parts(self, bucket: Bucket, data: bytes) -> None:
        head = msgspec.msgpack.decode(data, type=_Head)
        for part in range(1, head.num_parts):
            await bucket.delete(_part(head.upload, part))


def session_key(*names: str) -> str:
    """Any text may name a session; a key of a bucket has letters and digits."""
    return hashlib.sha256(msgspec.msgpack.encode(names)).hexdigest()


def _part(upload: str, part: int) -> str:
    return f"{upload}-{part}"
