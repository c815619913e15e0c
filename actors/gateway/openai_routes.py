"""OpenAI's HTTP API."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.errors import CallboardError
from ...schemas.serve import Detokenize, Embed, Generate, Tokenize
from . import endpoints
from .asking import begun, mixed, pieces, while_there
from .bodies import decode_body, read_body
from .endpoints import answer
from .engines import Engine
from .errors import BadBody, GatewayError, ModelUnknown, status_of, words
from .openai_chat import ChatStream, whole_chat
from .openai_completions import CompletionStream, Prompt, whole_completion
from .openai_request import chat_request, completion_requests, messages_of, prompts_of, tools_of
from .openai_types import ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, TokenizeBody
from .site import Site
from .sse import EventStream
from .visit import client_name

_CHAT_NAMES = {"logprobs": "top_logprobs", "grammar": "response_format", "prompt": "messages"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(error: CallboardError) -> dict[str, Any]:
    """OpenAI's shape of an error."""
    status = status_of(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = error.param or None if isinstance(error, GatewayError) else None
    code = "model_not_found" if isinstance(error, ModelUnknown) else error.to_info().code
    return {"error": {"message": words(error), "type": kind, "param": param, "code": code}}


def error_answer(error: CallboardError) -> Response:
    return endpoints.error_answer(error, error_body)


def endpoint(
    work: endpoints.Work, site: Site, names: Mapping[str, str] | None = None
) -> Callable[[Request], Awaitable[Response]]:
    """`names`: what this endpoint calls fields of the engine's requests."""
    return endpoints.endpoint(work, site, error_body, names)


async def chat_completions(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), ChatBody)
    engine = await site.engines.find(body.model)
    asked = chat_request(body, engine, client_name())
    known = site.words(engine.scheduler, asked.model)
    in_thought = await site.prompt_ends(engine.scheduler, asked.model).in_thought(asked)
    timeout = site.config.request_timeout_s
    if not body.stream:
        completion = await while_there(request, engine.scheduler.ask(asked, timeout=timeout))
        return answer(await whole_chat(completion, asked, body, known, in_thought))
    stream = await begun(pieces(engine.scheduler, asked, timeout), request)
    chunks = ChatStream(asked, body, known, in_thought).chunks(stream)
    return EventStream(endpoints.or_error(chunks, stream, error_body))


async def completions(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), CompletionBody)
    engine = await site.engines.find(body.model)
    asked = completion_requests(body, engine, client_name())
    known = site.words(engine.scheduler, engine.model.model)
    prompts = [await _prompt(site, engine, one, body) for one in asked]
    timeout = site.config.request_timeout_s
    if not body.stream:
        work = asyncio.gather(*(engine.scheduler.ask(one, timeout=timeout) for one in asked))
        return answer(await whole_completion(await while_there(request, _all(work)), prompts, body, known))
    stream = await begun(mixed(engine.scheduler, asked, timeout), request)
    return EventStream(endpoints.or_error(CompletionStream(prompts, body, known).chunks(stream), stream, error_body))


async def _all(work: asyncio.Future[list[Any]]) -> list[Any]:
    return await work


async def _prompt(site: Site, engine: Engine, request: Generate, body: CompletionBody) -> Prompt:
    """What is to be shown of a prompt: its text, and with log-probabilities its tokens."""
    if not body.echo:
        return Prompt(request, (), "")
    ids, text = request.prompt_ids, request.prompt
    if not ids:
        if body.logprobs is not None:
            ids = (await engine.scheduler.ask(Tokenize(text=text))).token_ids
    else:
        text = (await engine.scheduler.ask(Detokenize(ids))).text
    return Prompt(request, ids, text)


async def models(site: Site, request: Request) -> Response:
    found = await site.engines.look()
    return answer({"object": "list", "data": [_model(name, one) for name, one in sorted(found.engines.items())]})


async def model(site: Site, request: Request) -> Response:
    name = request.path_params["model"]
    return answer(_model(name, await site.engines.find(name)))


def _model(name: str, engine: Engine) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": int(engine.model.started),
        "owned_by": "callboard",
        "root": engine.model.model,
        "parent": engine.model.model if engine.adapter else None,
        "max_model_len": engine.model.context_length,
    }


async def embeddings(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), EmbeddingBody)
    engine = await site.engines.find(body.model)
    texts = await _texts(engine, body)
    asked = Embed(
        texts=texts, model=engine.model.model, adapter=engine.adapter, client=client_name() or body.user or ""
    )
    found = await while_there(request, engine.scheduler.ask(asked, timeout=site.config.request_timeout_s))
    vectors = [list(vector) for vector in found.vectors]
    if body.dimensions is not None:
        if not 1 <= body.dimensions <= len(vectors[0]):
            raise BadBody(f"dimensions: the model's vectors have {len(vectors[0])}", param="dimensions")
        vectors = [_shortened(vector, body.dimensions) for vector in vectors]
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
    return answer({"object": "list", "data": data, "model": body.model or engine.model.model, "usage": usage})


async def _texts(engine: Engine, body: EmbeddingBody) -> tuple[str, ...]:
    texts: list[str] = []
    for one in prompts_of(body.input, "input"):
        texts.append(one if isinstance(one, str) else (await engine.scheduler.ask(Detokenize(one))).text)
    return tuple(texts)


def _shortened(vector: list[float], dimensions: int) -> list[float]:
    """The first numbers, at length 1 again."""
    cut = vector[:dimensions]
    length = sum(value * value for value in cut) ** 0.5
    return [value / length for value in cut] if length else cut


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    if encoding == "float":
        return vector
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def tokenize(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), TokenizeBody)
    engine = await site.engines.find(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise BadBody("give either a `prompt` or `messages` to tokenize", param="prompt")
    asked = Tokenize(
        text=body.prompt or "",
        messages=messages_of(body.messages or []),
        tools=tools_of(body.tools),
        add_special=body.add_special_tokens,
    )
    ids = (await while_there(request, engine.scheduler.ask(asked))).token_ids if body.prompt != "" else ()
    return answer({"tokens": ids, "count": len(ids), "max_model_len": engine.model.context_length})


async def detokenize(site: Site, request: Request) -> Response:
    body = decode_body(await read_body(request, site.max_body_bytes), DetokenizeBody)
    engine = await site.engines.find(body.model)
    asked = Detokenize(tuple(body.tokens))
    return answer({"prompt": (await while_there(request, engine.scheduler.ask(asked))).text})


def openai_routes(site: Site) -> list[Route]:
    def post(path: str, work: endpoints.Work, names: Mapping[str, str] | None = None) -> Route:
        return Route(path, endpoint(work, site, names), methods=["POST"])

    def get(path: str, work: endpoints.Work) -> Route:
        return Route(path, endpoint(work, site), methods=["GET"])

    return [
        post("/v1/chat/completions", chat_completions, _CHAT_NAMES),
        post("/v1/completions", completions),
        get("/v1/models", models),
        get("/v1/models/{model:path}", model),
        post("/v1/embeddings", embeddings),
        post("/tokenize", tokenize),
        post("/detokenize", detokenize),
    ]
