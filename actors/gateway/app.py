"""The web application of a gateway: all routes, and what holds for every request."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from ...runtime.log import log
from .anthropic_routes import anthropic_routes
from .errors import GatewayError, NoSuchRoute
from .files_routes import files_routes
from .fine_tuning_routes import fine_tuning_routes
from .front import Front
from .kserve.http_routes import kserve_routes
from .openai_routes import openai_routes
from .openapi import openapi_route
from .operation_routes import operation_routes
from .responses_routes import responses_routes
from .sessions_routes import sessions_routes
from .shapes import refusal
from .site import Site
from .web_routes import web_routes

# What a page of another origin may read of an answer beside what browsers let it.
EXPOSED = ("x-request-id", "retry-after", "traceparent")


def make_app(site: Site, connections: Callable[[], int] = lambda: 0) -> ASGIApp:
    """`connections`: how many are open now. Raises ConfigError where there is no good file of keys."""
    config = site.config
    routes = [
        *openai_routes(site),
        *responses_routes(site),
        *files_routes(site),
        *fine_tuning_routes(site),
        *sessions_routes(site),
        *anthropic_routes(site),
        *kserve_routes(site),
        *operation_routes(site),
        *web_routes(site),
    ]
    routes.append(openapi_route(routes))
    app: ASGIApp = Starlette(routes=routes, exception_handlers={HTTPException: _no_route, Exception: _unexpected})
    app = Front(app, site, connections)
    if config.cors_origins:  # outside: a browser asks without a key whether it may ask
        app = CORSMiddleware(
            app,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        wrong = GatewayError(f"{request.url.path} takes no {request.method}")
        wrong.status = 405
    else:
        wrong = NoSuchRoute(f"there is no {request.url.path} here")
    return refusal(request.url.path, wrong, dict(error.headers or {}))


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    failure = GatewayError("the gateway failed over this request", hint="its log says why")
    failure.status = 500
    return refusal(request.url.path, failure)
