"""Responses that are kept, in a bucket that all gateways of a company share.

A record holds what one request added: a conversation is read back by going from each response to the one before it.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec

from ...runtime.buckets import Bucket
from ...runtime.errors import Conflict
from ...runtime.node import Node
from .errors import BadBody, BodyTooLarge, GatewayError
from .responses_types import InputItem

BUCKET = "callboard_responses"
# A longer conversation fits no model's context.
MAX_BEFORE = 4096
# What must be left of a record's room for the answer: far more than an answer's tokens take.
ANSWER_ROOM = 256 << 10

_ID = re.compile(r"resp_[0-9a-f]{32}")


class NoSuchResponse(GatewayError):
    code = "gateway.response"
    status = 404


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`response`: as it is answered. `input`: the items of its request. `previous`: the response that it follows.
    `gateway`: who works on it, while it is not over."""

    response: dict[str, Any]
    input: list[dict[str, Any]]
    previous: str = ""
    gateway: str = ""

    @property
    def status(self) -> str:
        return self.response["status"]


_decode = msgspec.msgpack.Decoder(Record).decode
_encode = msgspec.msgpack.Encoder().encode


class ResponseStore:
    """`ttl_s`: how long a response stays; `max_bytes`: for all together, the oldest go first. Errors: those of
    `Bucket`, and NoSuchResponse for a name that is not there (any more)."""

    def __init__(self, node: Node, ttl_s: float, max_bytes: int) -> None:
        self._node = node
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._bucket: Bucket | None = None
        self._opening = asyncio.Lock()

    async def _open(self) -> Bucket:
        async with self._opening:
            if self._bucket is None:
                self._bucket = await Bucket.open(self._node, BUCKET, ttl_s=self._ttl_s, max_bytes=self._max_bytes)
            return self._bucket

    async def get(self, response_id: str) -> tuple[Record, int]:
        """A record and its revision."""
        if _ID.fullmatch(response_id):
            kept = await (await self._open()).get(response_id)
            if kept is not None:
                return _decode(kept.data), kept.revision
        raise NoSuchResponse(f"there is no response '{response_id}' (any more)", param="response_id")

    async def check_room(self, record: Record) -> None:
        """Raises BodyTooLarge where a record's input leaves no room for an answer."""
        size, room = len(_encode(record)), (await self._open()).room - ANSWER_ROOM
        if size > room:
            raise BodyTooLarge(
                f"the request takes {size:,} bytes, and {room:,} can be stored",
                hint="with `store: false` it need not be",
            )

    async def put(self, record: Record, revision: int = 0) -> int:
        """The new revision. Raises Conflict where it is not of that revision any more."""
        return await (await self._open()).put(record.response["id"], _encode(record), revision)

    async def replace(self, record: Record, revision: int) -> Record:
        """`record`, or what somebody else made of it meanwhile."""
        try:
            await self.put(record, revision)
        except Conflict:
            record, _ = await self.get(record.response["id"])
        return record

    async def delete(self, response_id: str) -> None:
        await (await self._open()).delete(response_id)

    async def before(self, previous: str) -> list[InputItem]:
        """What was said up to the end of the response `previous`. Raises BadBody where there is no such one, or where
        it is not over."""
        records: list[Record] = []
        while previous:
            try:
                record, _ = await self.get(previous)
            except NoSuchResponse as error:
                raise BadBody(f"previous_response_id: {error}", param="previous_response_id") from error
            if record.status in ("queued", "in_progress"):
                raise BadBody(f"previous_response_id: {previous} is not over", param="previous_response_id")
            records.append(record)
            if len(records) > MAX_BEFORE:
                raise BadBody("previous_response_id: too long a conversation", param="previous_response_id")
            previous = record.previous
        items: list[dict[str, Any]] = []
        for record in reversed(records):
            items += [*record.input, *record.response["output"]]
        return msgspec.convert(items, list[InputItem])
