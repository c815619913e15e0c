"""The two array-like frames that carry messages over the bus: one towards an actor, one back.

Everything a hop needs rides in the payload. NATS headers are left to what NATS itself reads, because they cost its
Python client about ten times a plain publish.
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar

import msgspec

from .base import ErrorInfo

T = TypeVar("T")


class Op(enum.IntEnum):
    """What an envelope asks of the receiver."""

    TELL = 0
    ASK = 1
    STREAM = 2
    CANCEL = 3
    CREDIT = 4
    GRANT = 5
    PING = 6
    WATCH = 7
    UNWATCH = 8
    LINK = 9


class Envelope(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    """Towards an actor. The NATS reply subject names the conversation: a cancel or credit carries that of its request.

    `timeout_ms` is what is left of the deadline when sent (0: none); clocks of two hosts are never compared.
    `credit` is how many stream items the reader has room for. `sender` is an actor's address or a node's name. `trace`
    is the W3C traceparent of a traced message, which travels alone. Other plain messages that leave in one turn of the
    event loop travel together in `batch`, because a NATS message each would cost several times what handling them does.
    It stays the last field (see runtime/batches.py).
    """

    op: int
    body: T | None = None
    timeout_ms: int = 0
    credit: int = 0
    sender: str = ""
    trace: str = ""
    batch: tuple[T, ...] = ()


class Mark(enum.IntEnum):
    """What a frame coming back means."""

    OK = 0
    ERROR = 1
    ITEM = 2
    END = 3
    GRANT = 4
    BEAT = 5


class Frame(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    """Back from an actor: an answer, an error, a stream's item or end, a grant of credit, or a sign of life.

    `seq` numbers the items of a stream from 0: the first of `batch`, or at the end how many there were. For a grant it
    is how many more messages the sender may have under way.
    """

    mark: int
    seq: int = 0
    body: T | None = None
    error: ErrorInfo | None = None
    batch: tuple[T, ...] = ()
