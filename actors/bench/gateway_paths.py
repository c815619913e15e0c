"""The same request by both ways that there are: from the bus, and through a gateway over HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from ...runtime.refs import Ref
from ...schemas.serve import ChatMessage, Generate
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
            "stream_options": {"include_usage": True},
        }
        return msgspec.json.encode(asked)


@dataclass(frozen=True)
class Heard:
    """Seconds from sending to the first of the answer and to its end, and how many tokens it had."""

    first: float
    ended: float
    num_tokens: int


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
        return Heard(first, time.perf_counter() - began, tokens.result.usage.completion_tokens)


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
    ended = time.perf_counter() - began
    end = b"".join(last)
    if status != 200 or DONE not in end:
        raise BenchFailed(f"the gateway answered {status} with {end[:300]!r}")
    return Heard(first, ended, _completion_tokens(end))


def _completion_tokens(end: bytes) -> int:
    """From the last events of a stream: the last before the end tells the usage."""
    told = [line for line in end.split(b"\n") if line.startswith(b"data: {")]
    usage = msgspec.json.decode(told[-1].removeprefix(b"data: "))["usage"] if told else None
    if not usage:
        raise BenchFailed(f"a stream ended without its usage: {end[-300:]!r}")
    return usage["completion_tokens"]
