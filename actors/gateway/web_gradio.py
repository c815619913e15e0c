"""A chat page made by Gradio, over the bus: for who wants what Gradio can do with a page, a public address above all.

Gradio serves from a thread of its own, whose calls reach the bus through the event loop of this one.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread

from ...runtime.client import Client
from ...runtime.errors import CallboardError, NoSuchModel
from ...schemas.serve import ChatMessage, DescribeModel, Generate, Token
from ...schemas.serve_stats import GetStats
from .asking import pieces
from .engines import DESCRIBE_TIMEOUT_S, ENGINE, SCHEDULER
from .prompt_ends import PromptEnds
from .reasoning import ReasoningSplitter

TITLE = "Callboard"
DEFAULT_TEMPERATURE, DEFAULT_TOKENS, MOST_TOKENS = 0.7, 512, 8192
# An answer that is not whole after so long is given up, as a gateway does by default.
REQUEST_TIMEOUT_S = 600.0
# An engine that is loading answers when it is done.
LOADING_S = 150.0


async def served(bus: Client) -> dict[str, tuple[str, str]]:
    """By the name that a client uses: the scheduler's address, and the adapter ("" for the model itself)."""
    found: dict[str, tuple[str, str]] = {}
    for actor in await bus.actors():
        if actor.kind != SCHEDULER:
            continue
        try:
            model = await bus.actor(actor.address).ask(DescribeModel(), DESCRIBE_TIMEOUT_S)
        except CallboardError:
            continue  # it is about to end, or to begin: what answers is what can be chosen
        for name in ("", *model.adapters):
            found.setdefault(name or model.model, (actor.address, name))
    return found


async def wait_until_served(bus: Client) -> None:
    """Until an engine that loads has its model; at once where there is none."""
    for actor in await bus.actors():
        if actor.kind == ENGINE:
            await bus.actor(actor.address).ask(GetStats(), LOADING_S)


class Talk:
    """What Gradio calls for each turn, from threads of its own."""

    def __init__(self, bus: Client, models: dict[str, tuple[str, str]], loop: asyncio.AbstractEventLoop) -> None:
        self._bus = bus
        self._models = models
        self._loop = loop
        self._ends: dict[str, PromptEnds] = {}

    def turn(
        self, message: str, history: Sequence[Any], model: str, temperature: float, max_tokens: float
    ) -> Iterator[str]:
        """The answer as it grows, whole each time. Who stops reading it stops the engine."""
        answer = self._answer(message, history, model, temperature, round(max_tokens))
        try:
            while (grown := self._wait(anext(answer, None))) is not None:
                yield grown
        finally:
            self._wait(answer.aclose())

    def _wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(_as_coroutine(work), self._loop).result()

    async def _answer(
        self, message: str, history: Sequence[Any], model: str, temperature: float, max_tokens: int
    ) -> AsyncGenerator[str, None]:
        address, adapter = self._models[model]
        said = [ChatMessage(turn["role"], _text(turn["content"])) for turn in history]
        request = Generate(
            messages=(*said, ChatMessage("user", message)),
            adapter=adapter,
            temperature=temperature,
            max_tokens=max_tokens,
        )
        scheduler, text = self._bus.actor(address), ""
        ends = self._ends.setdefault(address, PromptEnds(scheduler))
        stream = pieces(scheduler, request, REQUEST_TIMEOUT_S)
        try:
            splitter = ReasoningSplitter(await ends.in_thought(request))
            async for some in stream:
                before = text
                for piece in some:
                    grown = splitter.push(piece.text) if isinstance(piece, Token) else splitter.finish()
                    text += grown.content
                if text != before:
                    yield text
        except CallboardError as error:
            yield f"{text}\n\n**{error.message}**" + (f" ({error.hint})" if error.hint else "")
        finally:
            await stream.aclose()


async def _as_coroutine(work: Any) -> Any:
    return await work


def _text(content: Any) -> str:
    """Of a turn as Gradio keeps it: a text, or its pieces."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text")


def page_of(talk: Talk, models: Sequence[str]) -> Any:
    """Raises ImportError without Gradio."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would tell its makers of each start
    gradio: Any = importlib.import_module("gradio")
    return gradio.ChatInterface(
        talk.turn,
        title=TITLE,
        additional_inputs=[
            gradio.Dropdown(list(models), value=models[0], label="model"),
            gradio.Slider(0, 2, DEFAULT_TEMPERATURE, label="temperature"),
            gradio.Slider(1, MOST_TOKENS, DEFAULT_TOKENS, step=1, label="most tokens"),
        ],
        api_name="chat",
        analytics_enabled=False,
        flagging_mode="never",
    )


@asynccontextmanager
async def gradio_page(bus: Client, host: str, port: int, share: bool) -> AsyncIterator[tuple[str, str]]:
    """The addresses of the page, here and (with `share`, else "") in public, while the block runs. Raises ImportError
    without Gradio, NoSuchModel where nothing is served."""
    models = await served(bus)
    if not models:
        raise NoSuchModel("no model is served", hint="`callboard up --model NAME` serves one")
    talk = Talk(bus, models, asyncio.get_running_loop())

    def launch() -> tuple[Any, str, str]:
        page = page_of(talk, sorted(models))
        _, here, public = page.launch(
            server_name=host, server_port=port or None, share=share, prevent_thread_lock=True, quiet=True
        )
        return page, here, public or ""

    page, here, public = await anyio.to_thread.run_sync(launch)
    try:
        yield here, public
    finally:
        await anyio.to_thread.run_sync(page.close)
