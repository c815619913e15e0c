"""The web application of a gateway: all routes, and what holds for every request."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...runtime.log import log
from .anthropic_routes import anthropic_routes
from .errors import GatewayError, NoSuchRoute
from .openai_routes import error_answer, openai_routes
from .site import Site
from .web_routes import web_routes


def make_app(site: Site) -> ASGIApp:
    app = Starlette(
        routes=[*openai_routes(site), *anthropic_routes(site), *web_routes(site)],
        exception_handlers={HTTPException: _no_route, Exception: _unexpected},
    )
    return Counting(app, site)


class Counting:
    """Counts requests, those under way, and those that failed here and not by the client's doing."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._counts = site.counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counts = self._counts
        counts.requests += 1
        counts.open += 1

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 500:
                counts.failed += 1
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            counts.open -= 1


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refusal = GatewayError(f"{request.url.path} takes no {request.method}")
        refusal.status = 405
    else:
        refusal = NoSuchRoute(f"there is no {request.url.path} here")
    return error_answer(refusal)


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    failure = GatewayError("the gateway failed over this request", hint="its log says why")
    failure.status = 500
    return error_answer(failure)
