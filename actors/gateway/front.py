"""What every request to a gateway passes before its route: room, time, its key, its limits, its trace, and counting.

One plain ASGI application around the routes, so that what streams through it is not held up.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...runtime.log import log
from ...runtime.tracing import Trace
from .doors import door_of
from .entrance import Entrance, admit
from .errors import GatewayError, TooMany, TooSlow
from .shapes import refusal
from .site import Site
from .traced import HEADER, traced
from .visit import Visit, visited

_ID = re.compile(r"[\x21-\x7e]{1,128}")
# A connection is closed behind a refusal only where no more than this of its request can still be under way: closing
# one with bytes unread resets it, and the client may never see the answer. Others are read on, in bounded time.
_SMALL_BODY = 1 << 16


class Front:
    """`connections`: how many are open now. Making one raises ConfigError where there is no good file of keys."""

    def __init__(self, app: ASGIApp, site: Site, connections: Callable[[], int]) -> None:
        self._app = app
        self._site = site
        how = "send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`"
        self._entrance = Entrance(site.config, site.http, how)
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counts = self._site.counts
        counts.requests += 1
        counts.open += 1
        passage = _Passage(self._site, scope, receive, send)
        try:
            await self._let_in(passage, scope)
        finally:
            counts.open -= 1
            counts.failed += passage.status >= 500
            self._site.http.ended(scope, passage.status, time.perf_counter() - passage.began)

    async def _let_in(self, passage: _Passage, scope: Scope) -> None:
        try:
            visit = self._admitted(passage, scope)
        except GatewayError as error:
            headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
            await refusal(scope["path"], error, headers)(scope, passage.receive, passage.send)
            return
        traceparent = passage.headers.get(HEADER, "")
        with visited(visit), traced(self._site, traceparent, f"{scope['method']} {scope['path']}") as passage.trace:
            await self._app(scope, passage.receive, passage.send)

    def _admitted(self, passage: _Passage, scope: Scope) -> Visit:
        """Raises TooMany, NotAllowed, LimitReached."""
        limit = self._site.config.max_connections
        if self._connections() > limit or self._site.counts.open > limit:
            passage.closing = passage.has_small_body
            raise TooMany(f"{limit} connections are open, and there is room for no more")
        path = scope["path"]
        visit = self._entrance.visit(door_of(path), f"ask for {path}", lambda name: passage.headers.get(name, ""))
        if visit.allowance is not None:
            passage.allowance_headers = visit.allowance.headers
        admit(visit)
        return visit


class _Passage:
    """One request's way in and out. Its body must be there in time; its answer gets the headers that all have."""

    def __init__(self, site: Site, scope: Scope, receive: Receive, send: Send) -> None:
        self.began = time.perf_counter()
        self.status = 0
        self.closing = False
        self.trace: Trace | None = None
        self.allowance_headers: Callable[[float], dict[str, str]] | None = None
        self.headers = Headers(scope=scope)
        self._receive = receive
        self._send = send
        self._time = site.config.body_timeout_s
        self._deadline = asyncio.get_running_loop().time() + self._time
        self._whole = False
        given = self.headers.get("x-request-id", "")
        self._id = given if _ID.fullmatch(given) else secrets.token_hex(16)

    @property
    def has_small_body(self) -> bool:
        length = self.headers.get("content-length", "0")
        return "transfer-encoding" not in self.headers and length.isdigit() and int(length) <= _SMALL_BODY

    async def receive(self) -> Message:
        if self._whole:  # what comes now is only that the client goes
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._whole = True
            log.info("the body of a request did not come within %g s", self._time)
            raise TooSlow(f"the body of the request did not come within {self._time:g} s") from None
        self._whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._id
            if self.trace is not None:
                headers[HEADER] = str(self.trace)
            if self.allowance_headers is not None:
                headers.update(self.allowance_headers(time.monotonic()))
            if self.closing or self.status == 408:
                headers["connection"] = "close"
        await self._send(message)
