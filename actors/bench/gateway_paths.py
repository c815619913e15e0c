"""The same request by both ways that there are: from the bus, and through a gateway over HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from ...runtime.refs import Ref
from ...schemas.serve import ChatMessage, Generate, Timings
from .errors import BenchFailed
from .gateway_http import DONE, Connection

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Talk:
    """One request: what is said, and how many tokens answer it, whatever the model would like to end with."""

    words: str
    output: int

    @property
    def generate(self) -> Generate:
        return Generate(
            messages=(ChatMessage("user", self.words),), max_tokens=self.output, temperature=0.0, ignore_eos=True
        )

    @property
    def body(self) -> bytes:
        asked = {
            "messages": [{"role": "user", "content": self.words}],
            "max_tokens": self.output,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "include_timings": True},
        }
        return msgspec.json.encode(asked)


@dataclass(frozen=True)
class Heard:
    """Seconds from sending to the first of the answer, the part of that which the engine says it took itself, and how
    many tokens came."""

    first: float
    engine: float
    num_tokens: int

    @property
    def way(self) -> float:
        """There and back, without the engine: its steps scatter by more than any way takes."""
        return self.first - self.engine


class Bus:
    def __init__(self, scheduler: Ref) -> None:
        self._scheduler = scheduler

    async def ask(self, talk: Talk) -> Heard:
        """Raises what the engine raises."""
        first, request = 0.0, talk.generate
        began = time.perf_counter()
        async with self._scheduler.stream(request) as tokens:
            async for _ in tokens:
                first = first or time.perf_counter() - began
        done = tokens.result
        return Heard(first, done.timings.ttft_ms / 1e3, done.usage.completion_tokens)


def connection_to(url: str) -> Connection:
    at = urlsplit(url)
    assert at.hostname is not None
    assert at.port is not None
    return Connection(at.hostname, at.port)


async def ask_over_http(connection: Connection, talk: Talk) -> Heard:
    """The first of the answer is the first byte of its body. Raises BenchFailed for any answer but a whole stream."""
    first, body = 0.0, talk.body
    last: list[bytes] = []
    began = time.perf_counter()
    status = await connection.post(PATH, body)
    async for piece in connection.pieces():
        first = first or time.perf_counter() - began
        last = [*last[-1:], piece]
    end = b"".join(last)
    if status != 200 or DONE not in end:
        raise BenchFailed(f"the gateway answered {status} with {end[:300]!r}")
    told = _last_event(end)
    return Heard(first, told.timings.ttft_ms / 1e3, told.usage.completion_tokens)


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Last(msgspec.Struct):
    usage: _Usage
    timings: Timings


def _last_event(end: bytes) -> _Last:
    """From the last pieces of a stream: the last event before its end tells what it took."""
    told = [line for line in end.split(b"\n") if line.startswith(b"data: {")]
    try:
        return msgspec.json.decode(told[-1].removeprefix(b"data: ") if told else b"", type=_Last)
    except msgspec.MsgspecError as error:
        raise BenchFailed(f"a stream ended without its usage and timings: {end[-300:]!r}") from error
