"""The gRPC health service: whether there is a model to ask, for load balancers and Kubernetes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from ..engines import KNOWN_FOR_S
from ..site import Site
from .describe import is_ready
from .grpc_keys import Doorkeeper
from .grpc_meters import CallMeter
from .grpc_methods import Context, Methods
from .grpc_service import SERVICE as INFERENCE
from .proto import health_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Health"]
_Status = pb.HealthCheckResponse.ServingStatus


def health_methods(site: Site, doorkeeper: Doorkeeper, meter: CallMeter, leaving: Callable[[], bool]) -> Methods:
    """`leaving`: whether this server is about to end, so that nobody should come any more."""

    async def status(service: str) -> _Status | None:
        if service not in ("", INFERENCE.full_name, SERVICE.full_name):
            return None
        return _Status.NOT_SERVING if leaving() or not await is_ready(site) else _Status.SERVING

    async def check(request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        found = await status(request.service)
        if found is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service '{request.service}' here")
        return pb.HealthCheckResponse(status=found)

    async def watch(request: pb.HealthCheckRequest, context: Context) -> None:
        """The status now, and again whenever it has become another one, until the client goes."""
        said: _Status | None = None
        while True:
            found = await status(request.service)
            now = _Status.SERVICE_UNKNOWN if found is None else found
            if now != said:
                await context.write(pb.HealthCheckResponse(status=now))
                said = now
            await asyncio.sleep(KNOWN_FOR_S)  # nothing tells of an engine that comes or goes

    methods = Methods(site, doorkeeper, meter, SERVICE)
    methods.add("Check", check)
    methods.add_stream("Watch", watch)
    return methods
