"""How a log is read: batches by sequence, a binary search for an event's number, and following it live.

Following uses a pull consumer of the server's that keeps nothing on disk: it is made anew from the next sequence
whenever the connection, the server, or the consumer itself has gone.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from ..schemas.store import LogBatch
from .errors import Disconnected, NoStore, StateMismatch
from .jetstream import RETRY_S, JetStream, Refused, Stored, Talk
from .messages import UNDECODABLE

T = TypeVar("T")

PULL_MESSAGES = 256
PULL_EXPIRES_S = 30.0
# A pull that hears nothing for two of these is begun anew.
HEARTBEAT_S = 5.0
# After so long without a pull the server forgets the consumer.
FORGOTTEN_S = 120.0

_decode = msgspec.msgpack.Decoder(LogBatch).decode


@dataclass(frozen=True)
class Event(Generic[T]):
    """An event of a log: its number, from 1; when it was written (the server's clock, RFC 3339); what it says."""

    number: int
    at: str
    value: T


def batch_of(stored: Stored) -> LogBatch:
    try:
        return _decode(stored.data)
    except UNDECODABLE as error:
        raise StateMismatch(f"what lies on {stored.subject} is no part of a log: {error}") from error


async def read_batches(
    jetstream: JetStream, stream: str, subject: str, seq: int
) -> AsyncIterator[tuple[int, LogBatch, str]]:
    """(sequence, batch, time of writing) of a subject's messages from `seq` on, up to its end."""
    while found := await jetstream.read(stream, subject, seq):
        for stored in found:
            yield stored.seq, batch_of(stored), stored.at
        seq = found[-1].seq + 1


async def find_batch(jetstream: JetStream, stream: str, subject: str, number: int) -> int:
    """The sequence of the message that has, or would have, event `number`: that of the last with `first <= number`.

    Sequences of a subject are not in step with its numbers, since all logs share the stream: a binary search, with a
    small read at each of its steps.
    """
    first, last = await jetstream.first(stream, subject), await jetstream.last(stream, subject)
    if first is None or last is None or batch_of(first).first > number:
        return 1
    low, high = first.seq, last.seq + 1  # the message at low fits; none at high or after it is looked for
    if batch_of(last).first <= number and batch_of(last).events:
        return last.seq
    while high - low > 1:
        middle = (low + high) // 2
        found = await jetstream.first(stream, subject, middle)
        if found is None or found.seq >= high or batch_of(found).first > number:
            high = middle
        else:
            low = found.seq
    # Takeovers carry no events and the number of the next one: what has it may lie before them.
    return low


class Following:
    """The messages of a subject from `seq` on, as they are written. An async context manager."""

    def __init__(self, jetstream: JetStream, stream: str, subject: str, seq: int) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._subject = subject
        self._seq = seq
        self._consumer = ""
        self._stack = AsyncExitStack()
        self._talk: Talk | None = None
        self._left = 0

    async def __aenter__(self) -> Following:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._drop()

    async def next(self) -> list[tuple[LogBatch, str]]:
        """The next message; more than none, or none when it is to be asked again."""
        try:
            if self._talk is None:
                await self._begin()
            return await self._hear()
        except (Disconnected, TimeoutError):
            await self._drop()
            await asyncio.sleep(RETRY_S)  # the server is away or just back: nothing says when it takes a consumer
            return []

    async def _begin(self) -> None:
        self._consumer = f"callboard-{secrets.token_hex(6)}"
        config: dict[str, Any] = {
            "name": self._consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._seq,
            "ack_policy": "none",
            "filter_subject": self._subject,
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _ns(FORGOTTEN_S),
        }
        request = {"stream_name": self._stream, "config": config, "action": "create"}
        await self._jetstream.api(f"CONSUMER.CREATE.{self._stream}.{self._consumer}.{self._subject}", request)
        self._talk = await self._stack.enter_async_context(self._jetstream.pull(*self._pull()))
        self._left = PULL_MESSAGES

    def _pull(self) -> tuple[str, bytes]:
        request = {"batch": PULL_MESSAGES, "expires": _ns(PULL_EXPIRES_S), "idle_heartbeat": _ns(HEARTBEAT_S)}
        return f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}", msgspec.json.encode(request)

    async def _hear(self) -> list[tuple[LogBatch, str]]:
        talk = self._talk
        assert talk is not None
        message = await talk.next(2 * HEARTBEAT_S)
        status = (message.headers or {}).get("Status")
        if status == "100":
            return []
        if status is None:
            seq, at = message.metadata.sequence.stream, message.metadata.timestamp.isoformat()
            self._left -= 1
            if self._left == 0:
                await self._again(talk)
            if seq < self._seq:
                return []
            self._seq = seq + 1
            return [(batch_of(Stored(seq, self._subject, message.data, at)), at)]
        if status == "408":  # the pull is over, as asked
            await self._again(talk)
            return []
        await self._drop()  # 409, 503: the consumer has gone
        return []

    async def _again(self, talk: Talk) -> None:
        await self._jetstream.say(talk, *self._pull())
        self._left = PULL_MESSAGES

    async def _drop(self) -> None:
        self._talk = None
        await self._stack.aclose()
        if self._consumer:
            with suppress(Disconnected, NoStore, TimeoutError, Refused):  # else the server forgets it by itself
                await self._jetstream.once(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}", b"")
            self._consumer = ""


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
