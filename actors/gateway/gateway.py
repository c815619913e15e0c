"""The actor of an HTTP gateway: a web server in the company, spawned, supervised and drained like any other actor."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator

import uvicorn

from ...runtime.actor import Actor, handler
from ...runtime.errors import ConfigError, UsageError
from ...schemas.base import Request
from ...schemas.gateway import AskGateway, FindResponse, GatewayInfo, ResponseUnderWay
from .app import make_app
from .config import GatewayConfig
from .connections import give_up_those_that_do_not_read, guarded
from .exporting import Exporter
from .site_making import make_site

# Connections that are not accepted yet.
BACKLOG = 2048
KEEP_ALIVE_S = 30


class _Serve(Request[None], frozen=True, tag="gateway.serve"):
    """What the gateway asks of itself: a handler may finish its work while the actor drains."""


class _Server(uvicorn.Server):
    """Signals are the process's own: the node that hosts the actor drains it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway(Actor[GatewayConfig]):
    """Serves HTTP until it ends. Start raises ConfigError where it cannot listen.

    In a drain no new connection is accepted, and what is under way has what is left of the drain time.
    """

    async def started(self) -> None:
        config = self.config
        self._site = make_site(self.node, config, self.address, self.start_soon)
        if config.otel:
            self._site.exporter = Exporter(self.node, config.otel)
        self._server = _Server(
            uvicorn.Config(
                make_app(self._site, lambda: len(self._server.server_state.connections)),
                http=guarded(config.header_timeout_s, config.max_connections),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_keep_alive=KEEP_ALIVE_S,
                ssl_certfile=config.tls_cert or None,
                ssl_keyfile=config.tls_key or None,
                server_header=False,
                ws="none",
            )
        )
        try:
            self._server.config.load()
        except (OSError, ValueError) as error:  # of the certificate and its key; SSLError is an OSError
            files = f"{config.tls_cert or 'no certificate'} and {config.tls_key or 'no key'}"
            raise ConfigError(f"HTTPS cannot be served with {files}: {error}") from error
        self._socket = _listen(config.host, config.port)
        if self._site.exporter is not None:
            self.start_soon(self._site.exporter.run)
        self.start_soon(give_up_those_that_do_not_read, self._server.server_state.connections, config.write_timeout_s)
        self._serving = False
        self.start_soon(self._begin)

    async def _begin(self) -> None:
        await self.ref.ask(_Serve(), timeout=math.inf)

    @handler(concurrent=True)
    async def serve(self, message: _Serve) -> None:
        if self._serving:
            raise UsageError(f"{self.address} serves already")
        self._serving = True
        await self._server.serve([self._socket])

    def draining(self) -> None:
        self._site.draining = True
        self._server.should_exit = True

    async def stopped(self) -> None:
        """What is not over by now is cut off: asyncio must not watch a socket that is closed and its number reused."""
        for server in getattr(self._server, "servers", ()):
            server.close()
        state = self._server.server_state
        for connection in list(state.connections):
            connection.transport.abort()
        for task in state.tasks:
            task.cancel()
        if state.tasks:
            await asyncio.wait(state.tasks)
        self._socket.close()

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"{'https' if self.config.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @handler
    async def ask_gateway(self, message: AskGateway) -> GatewayInfo:
        counts = self._site.counts
        return GatewayInfo(
            url=self.url,
            requests=counts.requests,
            open=counts.open,
            failed=counts.failed,
            connections=len(self._server.server_state.connections),
            tasks=len(asyncio.all_tasks()),
        )

    @handler(concurrent=True)
    async def find_response(self, message: FindResponse) -> ResponseUnderWay:
        return await self._site.background.find(message)


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # The protocol is named, or asyncio would not know TCP and leave its delays on: 40 ms for each answer.
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"'{host}' is no address to listen on: {error.strerror or error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        hint = "another program listens there; choose another port" if port else ""
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}", hint=hint) from error
    listening.setblocking(False)
    return listening
