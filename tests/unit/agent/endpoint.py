"""A real HTTP server that speaks OpenAI's and Anthropic's streaming APIs, and every fault of a bad day; it takes traces
too.

A test says, in order, how requests are answered; what came is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class Came:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Play:
    """One answer: a status with a body, or the pieces of a stream. `hang_at`: before that piece, until the client is
    gone; `cut_at`: the connection ends there. `gate`: waited for before the status."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: object = None
    pieces: Sequence[bytes] = ()
    hang_at: int = -1
    cut_at: int = -1
    content_type: str = "text/event-stream"
    hang_before: bool = False


class Endpoint:
    """`plays`: the answers to come. `came`: the requests. `gone`: set when a client left before its answer's end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.plays: list[Play] = []
        self.came: list[Came] = []
        self.gone = threading.Event()
        self.running = self.most_running = 0
        self.on_request: Callable[[], None] = lambda: None

    async def answer(self, request: Request) -> Response:
        self.came.append(Came(request.url.path, dict(request.headers), await request.json()))
        self.on_request()
        play = self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]
        if play.hang_before:
            await self._until_gone(request)
            return Response()
        if play.pieces:
            return StreamingResponse(
                self._stream(request, play), headers=play.headers, media_type=play.content_type, status_code=play.status
            )
        if isinstance(play.body, str):
            return Response(play.body, play.status, play.headers)
        return JSONResponse(play.body, play.status, play.headers)

    async def _stream(self, request: Request, play: Play) -> AsyncIterator[bytes]:
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            for place, piece in enumerate(play.pieces):
                if place == play.hang_at:
                    await self._until_gone(request)
                if place == play.cut_at:
                    raise ConnectionError("the test cuts the stream here")
                yield piece
                # Each piece is a packet of its own.
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.gone.set()
            raise
        finally:
            self.running -= 1

    async def _until_gone(self, request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(0.005)
        self.gone.set()


class Server:
    """Answers as `current` says. What an earlier endpoint still has under way stays that one's."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.current = Endpoint(url)

    async def answer(self, request: Request) -> Response:
        return await self.current.answer(request)

    def fresh(self) -> Endpoint:
        self.current = Endpoint(self.url)
        return self.current


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", server.answer, methods=["POST"]),
            Route("/v1/messages", server.answer, methods=["POST"]),
            Route("/v1/traces", server.answer, methods=["POST"]),
        ]
    )
    config = uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        runner.should_exit = True
        thread.join()
        listening.close()


def sse(data: object, name: str = "") -> bytes:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def chunk(delta: dict[str, Any] | None = None, finish: str | None = None, index: int = 0, **more: Any) -> bytes:
    choices = [{"index": index, "delta": delta or {}, "finish_reason": finish, **more}]
    return sse({**_HEAD, "choices": choices})


_HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def usage_chunk(prompt: int, completion: int, cached: int = 0) -> bytes:
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return sse({**_HEAD, "choices": [], "usage": usage})


DONE = sse("[DONE]")


def openai_text(*texts: str, finish: str = "stop", prompt: int = 7, completion: int = 3, cached: int = 0) -> Play:
    return Play(
        pieces=(
            chunk({"role": "assistant", "content": ""}),
            *(chunk({"content": text}) for text in texts),
            chunk(finish=finish),
            usage_chunk(prompt, completion, cached),
            DONE,
        )
    )


def anthropic_events(*blocks: list[dict[str, Any]], stop: str = "end_turn") -> tuple[bytes, ...]:
    """A stream whose content blocks are each a start and deltas."""
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "m",
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_read_input_tokens": 4,
            "cache_creation_input_tokens": 2,
            "output_tokens": 1,
        },
    }
    events = [{"type": "message_start", "message": message}, {"type": "ping"}]
    for index, (start, *deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": start})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": stop, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9}})
    events.append({"type": "message_stop"})
    return tuple(sse(event, event["type"]) for event in events)


def text_block(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in texts)]


def call_block(id: str, name: str, *parts: str) -> list[dict[str, Any]]:
    start = {"type": "tool_use", "id": id, "name": name, "input": {}}
    return [start, *({"type": "input_json_delta", "partial_json": part} for part in parts)]
