"""KServe's v2 protocol over HTTP, and Triton's extensions of it: binary tensors, generate, the repository's index."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .... import __version__
from ....runtime.errors import CallboardError
from ..asking import begun, while_there
from ..bodies import decode_body, read_body
from ..endpoints import Work, answer, endpoint, or_error
from ..engines import Engine
from ..errors import BadBody, words
from ..site import Site
from ..sse import EventStream, encode, event
from ..visit import client_name
from .answers import in_pieces, whole
from .describe import EXTENSIONS, config_of, find, index_of, inputs_of, is_ready, outputs_of
from .http_codec import HEADER_LENGTH, decompressed, plain_values, read_generate, read_infer, write_infer
from .signature import PLATFORM, STREAM, VERSION, asked_of
from .tensors import Tensor


class IndexBody(msgspec.Struct, kw_only=True):
    ready: bool = False


def error_body(error: CallboardError) -> dict[str, str]:
    """The protocol's shape of an error."""
    return {"error": words(error)}


async def server(site: Site, request: Request) -> Response:
    return answer({"name": PLATFORM, "version": __version__, "extensions": EXTENSIONS})


async def live(site: Site, request: Request) -> Response:
    return answer({"live": True})


async def ready(site: Site, request: Request) -> Response:
    serves = await is_ready(site)
    return answer({"ready": serves}, 200 if serves else 503)


async def model_ready(site: Site, request: Request) -> Response:
    name, _ = await _engine(site, request)
    return answer({"name": name, "ready": True})


async def model(site: Site, request: Request) -> Response:
    name, _ = await _engine(site, request)
    head: dict[str, Any] = {"name": name, "versions": [VERSION], "platform": PLATFORM}
    return answer(head | {"inputs": inputs_of(), "outputs": outputs_of()})


async def model_config(site: Site, request: Request) -> Response:
    name, _ = await _engine(site, request)
    return answer(config_of(name))


async def index(site: Site, request: Request) -> Response:
    body = await read_body(request, site.max_body_bytes)
    if body:
        decode_body(body, IndexBody)  # only models that are ready are in it, asked or not
    return answer(await index_of(site))


async def infer(site: Site, request: Request) -> Response:
    body = await _body(site, request)
    inference, header = read_infer(body, request.headers.get(HEADER_LENGTH, ""))
    name, engine = await _engine(site, request)
    asked = asked_of(inference, engine, client_name())
    if asked.stream:
        raise BadBody(f"{STREAM}: here an answer comes whole; `generate_stream` sends it in pieces", param=STREAM)
    tensors = await while_there(request, whole(site, engine.scheduler, asked))
    head = _head(name, inference.id)
    content, json_size = write_infer(head, tensors, header)
    if json_size is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(json_size)}, media_type="application/octet-stream")


async def generate(site: Site, request: Request) -> Response:
    inference = read_generate(await _body(site, request))
    name, engine = await _engine(site, request)
    asked = asked_of(inference, engine, client_name())
    if asked.stream:
        raise BadBody(f"{STREAM}: here an answer comes whole; `generate_stream` sends it in pieces", param=STREAM)
    tensors = await while_there(request, whole(site, engine.scheduler, asked))
    return answer(_head(name, inference.id) | _flat(tensors))


async def generate_stream(site: Site, request: Request) -> Response:
    """Each piece is an event; with `stream` false the whole answer is the only one."""
    inference = read_generate(await _body(site, request))
    name, engine = await _engine(site, request)
    asked = asked_of(inference, engine, client_name())
    head = _head(name, inference.id)
    if asked.stream is False:
        tensors = await while_there(request, whole(site, engine.scheduler, asked))
        return EventStream(_one_event(head | _flat(tensors)))
    stream = await begun(in_pieces(site, engine.scheduler, asked), request)
    return EventStream(or_error(_events(stream, head), stream, error_body))


async def _one_event(value: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    yield event(encode(value))


async def _events(stream: AsyncIterator[tuple[tuple[Tensor, ...], bool]], head: dict[str, Any]) -> AsyncIterator[bytes]:
    async for tensors, _ in stream:
        yield event(encode(head | _flat(tensors)))


def _head(name: str, id: str) -> dict[str, Any]:
    return {"model_name": name, "model_version": VERSION} | ({"id": id} if id else {})


def _flat(tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """Outputs of one element each, as this extension writes them."""
    return {tensor.name: plain_values(tensor)[0] for tensor in tensors}


async def _body(site: Site, request: Request) -> bytes:
    body = await read_body(request, site.max_body_bytes)
    return decompressed(body, request.headers.get("content-encoding", ""), site.max_body_bytes)


async def _engine(site: Site, request: Request) -> tuple[str, Engine]:
    name = request.path_params["model"]
    return name, await find(site, name, request.path_params.get("version", ""))


def kserve_routes(site: Site) -> list[Route]:
    def route(method: str, path: str, work: Work) -> Route:
        return Route(path, endpoint(work, site, error_body), methods=[method])

    routes = [
        route("GET", "/v2", server),
        route("GET", "/v2/health/live", live),
        route("GET", "/v2/health/ready", ready),
        route("POST", "/v2/repository/index", index),
    ]
    # The version comes first: a model's name may be a path itself.
    for base in ("/v2/models/{model:path}/versions/{version}", "/v2/models/{model:path}"):
        routes += [
            route("POST", f"{base}/infer", infer),
            route("POST", f"{base}/generate", generate),
            route("POST", f"{base}/generate_stream", generate_stream),
            route("GET", f"{base}/ready", model_ready),
            route("GET", f"{base}/config", model_config),
        ]
    routes += [
        route("GET", "/v2/models/{model:path}/versions/{version}", model),
        route("GET", "/v2/models/{model:path}", model),
    ]
    return routes
