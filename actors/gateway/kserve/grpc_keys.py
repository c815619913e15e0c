"""Whose key a call shows, and whether it may be used for it: the same file of keys as HTTP's."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import GatewayConfig
from ..doors import door_of
from ..entrance import Entrance, admit
from ..http_meters import HttpMeter
from ..visit import Visit

# Where HTTP has the like of a method: the same keys open both. Health and reflection tell nothing of anybody's.
_PATHS = {
    "/inference.GRPCInferenceService/ServerLive": "/v2/health/live",
    "/inference.GRPCInferenceService/ServerReady": "/v2/health/ready",
    "/inference.GRPCInferenceService/ServerMetadata": "/v2",
    "/inference.GRPCInferenceService/RepositoryIndex": "/v2/repository/index",
    "/grpc.health.v1.Health/Check": "/v2/health/ready",
    "/grpc.health.v1.Health/Watch": "/v2/health/ready",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": "/v2/health/live",
}
_MODELS = "/v2/models"
_STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


class Doorkeeper:
    """Start raises ConfigError for a file of keys that is damaged or not there."""

    def __init__(self, config: GatewayConfig, meter: HttpMeter) -> None:
        how = "send it as metadata: `authorization: Bearer KEY` or `x-api-key`"
        self._entrance = Entrance(config, meter, how)

    def visit(self, method: str, metadata: Mapping[str, str | bytes]) -> Visit:
        """Raises NotAllowed, LimitReached."""
        door = door_of(_PATHS.get(method, _MODELS))
        visit = self._entrance.visit(door, f"call {method}", lambda name: str(metadata.get(name, "")))
        if method != _STREAM:  # there each of its requests is one
            admit(visit)
        return visit
