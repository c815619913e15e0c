"""Length-prefixed MessagePack between a process and the one that started it, over the child's stdin and stdout."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from .tls import Tls

_LENGTH_BYTES = 4


class Start(msgspec.Struct, frozen=True, tag="start"):
    """What a child process needs to know: sent once. The end of its stdin afterwards means: drain and go."""

    name: str
    kind: str
    config: str
    url: str
    creds: str
    account: str = ""
    load: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    ask_timeout: float = 30.0
    drain_timeout: float = 10.0
    log_level: str = "info"
    restart: str = "temporary"
    takeover: bool = False
    log_file: str = ""
    tls: Tls = Tls()


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """May come before the end of stdin: how long the drain may take this time."""

    drain_timeout: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The actor's `started` has run."""


class Over(msgspec.Struct, frozen=True, tag="over"):
    """The actor ended, or never began; `error` is why, if it was not asked to."""

    code: str = ""
    message: str = ""
    hint: str = ""
    detail: str = ""


Report = Ready | Over


class Reader(Protocol):
    async def receive_exactly(self, nbytes: int, /) -> bytes: ...


def pack(value: msgspec.Struct) -> bytes:
    data = msgspec.msgpack.encode(value)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


async def read_report(reader: Reader) -> Report:
    """Raises anyio.EndOfStream or anyio.IncompleteRead when the other side is gone."""
    length = int.from_bytes(await reader.receive_exactly(_LENGTH_BYTES), "big")
    return msgspec.msgpack.decode(await reader.receive_exactly(length), type=Report)


def read_start(read: Any) -> Start:
    """Blocking: `read(n)` gives exactly n bytes. Raises EOFError when the parent went before it said anything."""
    head = read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        raise EOFError
    return msgspec.msgpack.decode(read(int.from_bytes(head, "big")), type=Start)


def parse_stop(data: bytes) -> Stop | None:
    """What came between the orders and the end of stdin; None for nothing, or half of it."""
    try:
        return msgspec.msgpack.decode(data[_LENGTH_BYTES:], type=Stop)
    except msgspec.MsgspecError:
        return None
