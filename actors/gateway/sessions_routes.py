"""`/v1/sessions`: the conversations whose keys and values engines keep. A chat names its own by `session_id`."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ...schemas.serve import CloseSession, ListSessions, PinSession
from .bodies import decode_body, read_body
from .endpoints import answer
from .engines import Engine
from .errors import GatewayError
from .openai_routes import endpoint
from .site import Site


class NoSuchSession(GatewayError):
    code = "gateway.session"
    status = 404


class PinBody(msgspec.Struct, kw_only=True):
    """`ttl_s`: seconds from now; 0 is the engine's default."""

    ttl_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """`num_blocks`: of keys and values that are kept for it; `expires_in_s`: unless another turn comes before."""

    id: str
    model: str
    num_blocks: int
    expires_in_s: float
    object: str = "session"


async def _engines(site: Site) -> list[Engine]:
    """Each engine once."""
    found = await site.engines.look()
    return list({engine.scheduler.address: engine for engine in found.engines.values()}.values())


async def _sessions(engine: Engine) -> list[Session]:
    kept = (await engine.scheduler.ask(ListSessions())).sessions
    return [
        Session(id=one.session, model=engine.model.model, num_blocks=one.num_blocks, expires_in_s=one.expires_in_s)
        for one in kept
    ]


async def list_sessions(site: Site, request: Request) -> Response:
    lists = await asyncio.gather(*map(_sessions, await _engines(site)))
    return answer({"object": "list", "data": [one for sessions in lists for one in sessions]})


async def pin(site: Site, request: Request) -> Response:
    """The same id may be known to several engines, with a conversation each."""
    body = decode_body(await read_body(request, site.max_body_bytes), PinBody)
    name, engines = request.path_params["session_id"], await _engines(site)
    answers = await asyncio.gather(*(engine.scheduler.ask(PinSession(name, body.ttl_s)) for engine in engines))
    known = [engine for engine, pinned in zip(engines, answers, strict=True) if pinned.known]
    if not known:
        raise _unknown(name)
    lists = await asyncio.gather(*map(_sessions, known))
    return answer({"object": "list", "data": [one for sessions in lists for one in sessions if one.id == name]})


async def drop(site: Site, request: Request) -> Response:
    name = request.path_params["session_id"]
    engines = await _engines(site)
    answers = await asyncio.gather(*(engine.scheduler.ask(CloseSession(name)) for engine in engines))
    if not any(closed.known for closed in answers):
        raise _unknown(name)
    return answer({"id": name, "object": "session", "deleted": True})


def _unknown(name: str) -> NoSuchSession:
    return NoSuchSession(f"no engine keeps a session '{name}' (any more)", param="session_id")


def sessions_routes(site: Site) -> list[Route]:
    one = "/v1/sessions/{session_id}"
    return [
        Route("/v1/sessions", endpoint(list_sessions, site), methods=["GET"]),
        Route(one, endpoint(pin, site), methods=["POST"]),
        Route(one, endpoint(drop, site), methods=["DELETE"]),
    ]
