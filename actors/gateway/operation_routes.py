"""What operators and their machines ask a gateway: `/health`, `/ready`, `/metrics`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.census import actors_around
from ...runtime.errors import CallboardError
from ...runtime.metrics import measure_around
from ...runtime.node import Node
from ...runtime.refs import Ref
from ...runtime.served import GRPC_KIND
from ...schemas.base import Request
from ...schemas.gateway import AskGatewayMeters, GatewayMeters
from ...schemas.serve_stats import GetStats
from .endpoints import answer
from .engines import Found, Loading
from .exposition import CONTENT_TYPE, Observed, exposition
from .site import Site

R = TypeVar("R")


class ReadyQuery(msgspec.Struct, kw_only=True):
    """`model`: the one that must be served, any where none is named."""

    model: str = ""


# Who asks for health wants to know of now, and may ask often.
FRESH_S = 0.5
STATS_TIMEOUT_S = 3.0


def operation_routes(site: Site) -> list[Route]:
    async def health(request: HttpRequest) -> Response:
        """200 where at least one model is served, whatever else is still loading."""
        found = await site.engines.look(since=time.monotonic() - FRESH_S)
        if found.engines:
            return answer(_state("ok", found))
        return _not_yet("loading" if found.loading else "no model", found)

    async def ready(request: HttpRequest) -> Response:
        """200 where this gateway takes requests, and for `?model=NAME` where that model is served."""
        found = await site.engines.look(since=time.monotonic() - FRESH_S)
        name = request.query_params.get("model", "")
        if site.draining:
            return _not_yet("draining", found)
        if name in found.engines or (not name and found.engines):
            return answer(_state("ready", found))
        return _not_yet("loading" if found.loading else "no model", found)

    async def metrics(request: HttpRequest) -> Response:
        return Response(exposition(await observe(site)), headers={"content-type": CONTENT_TYPE})

    return [Route(f"/{work.__name__}", work, methods=["GET"]) for work in (health, ready, metrics)]


def _state(status: str, found: Found) -> dict[str, Any]:
    return {"status": status, "models": sorted(found.engines), "loading": [_described(one) for one in found.loading]}


def _not_yet(status: str, found: Found) -> Response:
    return answer(_state(status, found), 503, {"retry-after": "1"})


def _described(one: Loading) -> dict[str, Any]:
    since = datetime.fromtimestamp(one.since, UTC) if one.since else None
    return {
        "engine": one.engine,
        "state": one.state,
        "since": since.isoformat(timespec="seconds") if since else None,
        "for_s": round(max(0.0, time.time() - one.since), 1) if since else None,
    }


async def observe(site: Site) -> Observed:
    """Everything that is counted, here and all over the company, as of now."""
    found = await site.engines.look()
    refs = {engine.scheduler.address: engine.scheduler for engine in found.engines.values()}
    nodes, flush_s, engines, grpc = await asyncio.gather(
        measure_around(site.node), _flush(site.node), _all(GetStats(), refs.values()), _grpc_gateways(site.node)
    )
    return Observed(
        gateway=site.node.name,
        counts=site.counts,
        http=site.http,
        meters=site.engines.meters,
        engines=engines,
        grpc=grpc,
        loading=[one.engine for one in found.loading],
        nodes=nodes,
        flush_s=flush_s,
    )


async def _grpc_gateways(node: Node) -> dict[str, GatewayMeters]:
    refs = [node.actor(info.address) for info in await actors_around(node) if info.kind == GRPC_KIND]
    return await _all(AskGatewayMeters(), refs)


async def _all(message: Request[R], refs: Iterable[Ref]) -> dict[str, R]:
    """What each answers, by address. The series of one that is gone or stuck stop."""
    found: dict[str, R] = {}

    async def ask(ref: Ref) -> None:
        with contextlib.suppress(CallboardError):
            found[ref.address] = await ref.ask(message, timeout=STATS_TIMEOUT_S)

    await asyncio.gather(*map(ask, refs))
    return found


async def _flush(node: Node) -> float | None:
    if node.links is None:
        return None
    began = time.perf_counter()
    try:
        await node.links.bus.flush(timeout=STATS_TIMEOUT_S)
    except CallboardError:
        return None
    return time.perf_counter() - began
