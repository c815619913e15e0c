"""The actor of a gRPC gateway: KServe's v2 protocol, the health service and reflection, on a port of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio

from ....runtime.actor import Actor, handler
from ....runtime.errors import ConfigError
from ....schemas.gateway import AskGateway, AskGatewayMeters, GatewayInfo, GatewayMeters
from ..config import GatewayConfig
from ..exporting import Exporter
from ..site_making import make_site
from .grpc_keys import Doorkeeper
from .grpc_meters import CallMeter, meters_of
from .grpc_service import inference_methods
from .health import health_methods
from .reflection import reflection_methods

# Whoever drains this actor says how long it may take; this is only to be longer.
DRAIN_AT_MOST_S = 3600.0


class GrpcGateway(Actor[GatewayConfig]):
    """Serves gRPC until it ends. Start raises ConfigError where it cannot listen.

    It takes the settings of an HTTP gateway, since one table sets both: `cors_origins` and the time that headers and
    bodies may take mean nothing here.

    In a drain no new call is accepted, the health service says so, and what is under way has what is left of the drain
    time.
    """

    async def started(self) -> None:
        config = self.config
        self._site = make_site(self.node, config, self.address, self.start_soon)
        if config.otel:
            self._site.exporter = Exporter(self.node, config.otel)
            self.start_soon(self._site.exporter.run)
        self._leaving = False
        self._calls = CallMeter()
        doorkeeper = Doorkeeper(config, self._site.http)
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", self._site.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                # Two gateways on one port would share its calls without a word.
                ("grpc.so_reuseport", 0),
                # A connection with calls on it whose client reads nothing at all is closed.
                ("grpc.keepalive_time_ms", round(config.write_timeout_s * 1000)),
            ),
            maximum_concurrent_rpcs=config.max_connections,
        )
        inference = inference_methods(self._site, doorkeeper, self._calls)
        health = health_methods(self._site, doorkeeper, self._calls, lambda: self._leaving)
        reflection = reflection_methods(self._site, doorkeeper, self._calls, [inference.service, health.service])
        self._server.add_generic_rpc_handlers([methods.handler() for methods in (inference, health, reflection)])
        self._port = self._listen()
        await self._server.start()

    def _listen(self) -> int:
        config = self.config
        address = f"{f'[{config.host}]' if ':' in config.host else config.host}:{config.port}"
        credentials = self._credentials()
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            hint = "another program listens there; choose another port" if config.port else ""
            raise ConfigError(f"cannot listen on {address}: {error}", hint=hint) from error

    def _credentials(self) -> grpc.ServerCredentials | None:
        config = self.config
        if not config.tls_cert and not config.tls_key:
            return None
        try:
            chain, key = Path(config.tls_cert).read_bytes(), Path(config.tls_key).read_bytes()
        except OSError as error:
            raise ConfigError(f"the certificate or its key cannot be read: {error}") from error
        return grpc.ssl_server_credentials([(key, chain)])

    async def draining(self) -> None:
        self._leaving = True
        await self._server.stop(DRAIN_AT_MOST_S)

    async def stopped(self) -> None:
        await self._server.stop(None)

    @property
    def url(self) -> str:
        host = self.config.host
        return f"{'grpcs' if self.config.tls_cert else 'grpc'}://{f'[{host}]' if ':' in host else host}:{self._port}"

    @handler
    async def ask_gateway(self, message: AskGateway) -> GatewayInfo:
        counts = self._site.counts
        return GatewayInfo(
            url=self.url,
            requests=counts.requests,
            open=counts.open,
            failed=counts.failed,
            tasks=len(asyncio.all_tasks()),
        )

    @handler
    async def ask_meters(self, message: AskGatewayMeters) -> GatewayMeters:
        return meters_of(self._site, self._calls)
