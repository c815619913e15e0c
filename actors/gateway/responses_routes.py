"""`/v1/responses`: OpenAI's API whose conversations are kept by the server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.errors import CallboardError
from ...runtime.log import log
from ...schemas.serve import Completion, Generate, Token, Tokenize
from .asking import Begun, Pieces, begun, pieces, while_there
from .background import ACTIVE
from .bodies import decode_body, decode_query, read_body
from .endpoints import answer
from .engines import Engine
from .errors import BadBody
from .openai_routes import endpoint
from .pages import PageQuery, page
from .responses_build import Event, ResponseBuilder, item_id
from .responses_request import items_of, response_request
from .responses_store import Record
from .responses_types import InputItem, InputPart, ResponseBody
from .site import Site
from .sse import HOLE, EventStream, Template, encode, event

_NAMES = {
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "grammar": "text.format.schema",
    "prompt": "input",
}
_GROWTH = ("response.output_text.delta", "response.reasoning_text.delta")
_KINDS = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


@dataclass
class Making:
    """One response on its way."""

    site: Site
    engine: Engine
    body: ResponseBody
    asked: Generate
    builder: ResponseBuilder
    items: list[dict[str, Any]]
    revision: int = 0

    @property
    def stores(self) -> bool:
        return self.body.store is not False

    def record(self, gateway: str = "") -> Record:
        previous = self.body.previous_response_id or ""
        return Record(response=self.builder.response, input=self.items, previous=previous, gateway=gateway)

    async def store(self, gateway: str = "") -> None:
        if self.stores:
            self.revision = await self.site.responses.put(self.record(gateway), self.revision)

    async def count(self, text: str) -> int:
        """Tokens of a text."""
        return len((await self.engine.scheduler.ask(Tokenize(text=text, add_special=False))).token_ids)

    async def take(self, completion: Completion) -> None:
        """An answer that comes all at once."""
        (choice,) = completion.choices
        self.builder.begin()
        await self.builder.push(Token(choice.text, choice.token_ids, logprobs=choice.logprobs))
        await self.builder.finish(completion, self.count)
        await self.store()


async def create(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), ResponseBody)
    engine = await site.engines.find(body.model)
    before = await site.responses.before(body.previous_response_id) if body.previous_response_id else []
    asked = response_request(body, before, engine, "")
    in_thought = await site.prompt_ends(engine.scheduler, asked.model).in_thought(asked)
    builder = ResponseBuilder(body, engine.model.model, site.words(engine.scheduler, asked.model), in_thought)
    making = Making(site, engine, body, asked, builder, [_kept(item) for item in items_of(body)])
    if making.stores:
        await site.responses.check_room(making.record())
    if body.background:
        return await _in_background(making)
    timeout = site.config.request_timeout_s
    if body.stream:
        stream = await begun(pieces(engine.scheduler, asked, timeout), request)
        return EventStream(_events(stream, making))
    completion = await while_there(request, engine.scheduler.ask(asked, timeout=timeout))
    await making.take(completion)
    return answer(builder.response)


async def _events(stream: Begun[Pieces], making: Making) -> AsyncGenerator[bytes, None]:
    """What came of the engine's stream together goes into one write. Events are encoded as soon as they are told: what
    they show grows."""
    builder, encoded = making.builder, EventEncoder()
    chunks = [encoded(builder.begin())]
    async with aclosing(stream):
        try:
            async for some in stream:
                for piece in some:
                    if isinstance(piece, Token):
                        chunks.append(encoded(await builder.push(piece)))
                    else:
                        chunks.append(encoded(await builder.finish(piece, making.count)))
                if any(chunks):
                    yield b"".join(chunks)
                    chunks.clear()
        except CallboardError as error:
            log.info("a stream ends with an error: %s", error)
            builder.fail(error)
        try:
            await making.store()  # before it is said to be over: then it can be followed by another
        except CallboardError as error:
            log.error("%s cannot be stored: %s", builder.id, error)
            builder.fail(error)
        yield encoded([builder.end()])


class EventEncoder:
    """Events as they are sent. What an item grows by comes again and again: all of it but the text is encoded once."""

    def __init__(self) -> None:
        self._growing: tuple[str, str] = ("", "")
        self._template: Template | None = None

    def __call__(self, events: Iterable[Event]) -> bytes:
        return b"".join([self._encoded(one) for one in events])

    def _encoded(self, one: Event) -> bytes:
        name = one["type"]
        if name not in _GROWTH or one.get("logprobs"):
            return event(encode(one), name)
        if self._template is None or self._growing != (name, one["item_id"]):
            self._growing = (name, one["item_id"])
            self._template = Template(one | {"sequence_number": HOLE, "delta": HOLE}, name)
        return self._template.event(one["sequence_number"], one["delta"])


async def _in_background(making: Making) -> Response:
    site, builder = making.site, making.builder
    site.background.check_room()
    await making.store(site.background.address)
    begun_as = msgspec.json.encode(builder.response)

    async def work() -> None:
        try:
            builder.begin()
            await making.store(site.background.address)
            asked = making.engine.scheduler.ask(making.asked, timeout=site.config.request_timeout_s)
            await making.take(await asked)
        except CallboardError as error:
            builder.fail(error)
            await over()

    async def cancelled() -> None:
        builder.cancel()
        await over()

    async def over() -> None:
        try:
            await making.store()
        except CallboardError as error:  # who asks for it finds that nobody works on it any more
            log.error("the end of %s cannot be stored: %s", builder.id, error)

    site.background.begin(builder.id, work, cancelled)
    return Response(begun_as, media_type="application/json")


async def input_tokens(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), ResponseBody)
    engine = await site.engines.find(body.model)
    before = await site.responses.before(body.previous_response_id) if body.previous_response_id else []
    asked = response_request(body, before, engine, "")
    tokens = (await engine.scheduler.ask(Tokenize(messages=asked.messages, tools=asked.tools))).token_ids
    return answer({"object": "response.input_tokens", "input_tokens": len(tokens)})


async def retrieve(site: Site, request: Request) -> Response:
    if request.query_params.get("stream") == "true":
        raise BadBody("stream: a response is streamed while it is made, not afterwards", param="stream")
    return answer((await site.background.now(request.path_params["response_id"])).response)


async def cancel(site: Site, request: Request) -> Response:
    name = request.path_params["response_id"]
    record, _ = await site.responses.get(name)
    if not record.response["background"]:
        raise BadBody(f"{name} was not made in the background, so nobody can cancel it", param="response_id")
    return answer((await site.background.now(name, cancel=True)).response)


async def delete(site: Site, request: Request) -> Response:
    name = request.path_params["response_id"]
    record, _ = await site.responses.get(name)
    if record.status in ACTIVE:
        await site.background.now(name, cancel=True)
    await site.responses.delete(name)
    return answer({"id": name, "object": "response", "deleted": True})


async def input_items(site: Site, request: Request) -> Response:
    record, _ = await site.responses.get(request.path_params["response_id"])
    asked = decode_query(request, PageQuery)
    return answer(page(record.input, limit=asked.limit, order=asked.order, after=asked.after))


def _kept(item: InputItem) -> dict[str, Any]:
    """An item of the input as it is kept and listed: with an id, and texts as parts."""
    kind = item.type
    said: dict[str, Any] = {"id": item.id or item_id(_KINDS[kind]), "type": kind, "status": "completed"}
    if kind == "message":
        assert item.content is not None
        text_type = "output_text" if item.role == "assistant" else "input_text"
        return said | {"role": item.role, "content": _parts(item.content, text_type)}
    if kind == "function_call":
        return said | {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
    if kind == "function_call_output":
        output = item.output
        return said | {
            "call_id": item.call_id,
            "output": output if isinstance(output, str) else _parts(output or [], "input_text"),
        }
    return said | {
        "summary": _parts(item.summary or [], "summary_text"),
        "content": _parts(item.content or [], "reasoning_text"),
    }


def _parts(content: str | list[InputPart], kind: str) -> list[dict[str, Any]]:
    parts = [InputPart(type=kind, text=content)] if isinstance(content, str) else content
    more: dict[str, Any] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return [
        {"type": "refusal", "refusal": part.refusal}
        if part.type == "refusal"
        else {"type": kind, "text": part.text} | more
        for part in parts
    ]


def responses_routes(site: Site) -> list[Route]:
    one = "/v1/responses/{response_id}"
    return [
        Route("/v1/responses", endpoint(create, site, _NAMES), methods=["POST"]),
        Route("/v1/responses/input_tokens", endpoint(input_tokens, site), methods=["POST"]),
        Route(one, endpoint(retrieve, site), methods=["GET"]),
        Route(one, endpoint(delete, site), methods=["DELETE"]),
        Route(f"{one}/cancel", endpoint(cancel, site), methods=["POST"]),
        Route(f"{one}/input_items", endpoint(input_items, site), methods=["GET"]),
    ]
