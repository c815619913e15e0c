"""Length-prefixed MessagePack between a process and the one that started it, over the child's stdin and stdout."""

from __future__ import annotations

import os
from typing import IO, Protocol, TypeVar

import msgspec

from .messages import UNDECODABLE
from .tls import Tls

_LENGTH_BYTES = 4

T = TypeVar("T", bound=msgspec.Struct)


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


class RayOrders(msgspec.Struct, frozen=True, kw_only=True, tag="ray"):
    """What the process that stands for an actor on a Ray cluster needs to know: sent to it in the place of `Start`.

    Times are in seconds, `memory` in bytes."""

    start: Start
    address: str
    num_cpus: float
    num_gpus: float
    memory: int
    resources: dict[str, float]
    env: dict[str, str]
    connect_timeout: float
    patience: float
    ready_timeout: float


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
    return parse_report(await reader.receive_exactly(length))


def read_frame(stream: IO[bytes]) -> bytes:
    """What one frame holds. Blocking. Raises EOFError when the other side went before it had said all of it."""
    return _exactly(stream, int.from_bytes(_exactly(stream, _LENGTH_BYTES), "big"))


def parse_report(data: bytes) -> Report:
    return msgspec.msgpack.decode(data, type=Report)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.read(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def take_pipes(kind: type[T]) -> tuple[T, int]:
    """A child process's orders, and the descriptor that its reports go to. Raises EOFError as `read_frame`.

    What it prints goes to its log from here on: its stdout is for reports.
    """
    report = os.dup(1)
    os.set_inheritable(report, False)
    os.dup2(2, 1)
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        return msgspec.msgpack.decode(read_frame(stdin), type=kind), report


def parse_stop(data: bytes) -> Stop | None:
    """What came between the orders and the end of stdin; None for nothing, or half of it."""
    try:
        return msgspec.msgpack.decode(data[_LENGTH_BYTES:], type=Stop)
    except UNDECODABLE:
        return None
