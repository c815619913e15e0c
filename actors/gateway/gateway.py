"""The actor of an HTTP gateway: a web server in the company, spawned, supervised and drained like any other actor."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import anyio
import uvicorn

from ...runtime.actor import Actor, handler
from ...runtime.errors import ConfigError
from ...runtime.folders import Paths
from ...schemas.gateway import AskGateway, FindResponse, GatewayInfo, ResponseUnderWay
from .app import make_app
from .background import Background
from .config import GatewayConfig
from .engines import Engines
from .file_store import FileStore
from .fine_tuning import FineTunes
from .responses_store import ResponseStore
from .site import Site

# Connections that are not accepted yet.
BACKLOG = 2048
KEEP_ALIVE_S = 30


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
        responses = ResponseStore(self.node, config.responses_ttl_s, config.responses_max_mib << 20)
        data = Paths.find().data
        files = FileStore(data / "files", config.files_max_mib << 20)
        engines = Engines(self.node, config.models)
        fine_tunes = FineTunes(self.node, data / "fine_tuning", files, engines, config.fine_tuning)
        engines.load = fine_tunes.load
        self._site = Site(
            self.node,
            config,
            engines,
            Background(self.node, self.address, responses, self.start_soon),
            responses,
            files,
            fine_tunes,
        )
        self._socket = _listen(config.host, config.port)
        self._server = _Server(
            uvicorn.Config(
                make_app(self._site),
                log_config=None,
                access_log=False,
                lifespan="off",
                timeout_keep_alive=KEEP_ALIVE_S,
                limit_concurrency=config.max_connections,
                ssl_certfile=config.tls_cert or None,
                ssl_keyfile=config.tls_key or None,
                server_header=False,
                ws="none",
            )
        )
        self._over = anyio.Event()
        self.start_soon(self._serve)

    async def _serve(self) -> None:
        try:
            await self._server.serve([self._socket])
        finally:
            self._over.set()

    def draining(self) -> None:
        self._server.should_exit = True

    async def stopped(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        # Uvicorn's own end of it may have been cancelled. A socket that is closed while the loop still watches it would
        # take the connections of the next one that gets its number.
        for server in getattr(self._server, "servers", ()):
            server.close()
        state = self._server.server_state
        for connection in tuple(state.connections):
            connection.shutdown()
        for task in tuple(state.tasks):
            task.cancel()
        self._socket.close()

    @property
    def url(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"{'https' if self.config.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    @handler
    async def ask_gateway(self, message: AskGateway) -> GatewayInfo:
        counts = self._site.counts
        return GatewayInfo(url=self.url, requests=counts.requests, open=counts.open, failed=counts.failed)

    @handler(concurrent=True)
    async def find_response(self, message: FindResponse) -> ResponseUnderWay:
        return await self._site.background.find(message)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
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
