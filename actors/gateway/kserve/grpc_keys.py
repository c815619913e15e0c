"""Whose key a call shows, and whether it may be used for it: the same file of keys as HTTP's."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from ..config import GatewayConfig
from ..doors import door_of
from ..errors import LimitReached, NotAllowed
from ..keys import Key, Keys
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


def admit(visit: Visit) -> None:
    """Count one more request of that visitor. Raises LimitReached."""
    if visit.allowance is None:
        return
    what, seconds = visit.allowance.admit(time.monotonic())
    if what:
        raise LimitReached(f"the key '{visit.name}' has used up its {what} of this minute", seconds)


class Doorkeeper:
    """Without `keys_file` in the configuration everybody may come in. Start raises ConfigError for a file that is
    damaged or not there."""

    def __init__(self, config: GatewayConfig) -> None:
        self._keys = Keys(Path(config.keys_file).expanduser()) if config.keys_file else None

    def visit(self, method: str, metadata: Mapping[str, str | bytes]) -> Visit:
        """Raises NotAllowed, LimitReached."""
        door = door_of(_PATHS.get(method, _MODELS))
        if self._keys is None or not door.needs_key:
            return Visit()
        key = self._key(self._keys, metadata)
        if door.scope is not None and door.scope not in key.scopes:
            raise NotAllowed(f"the key '{key.name}' may not call {method}: it lacks the scope {door.scope}", 403)
        visit = Visit(key.name, self._keys.allowance(key))
        if method != _STREAM:  # there each of its requests is one
            admit(visit)
        return visit

    @staticmethod
    def _key(keys: Keys, metadata: Mapping[str, str | bytes]) -> Key:
        shown = str(metadata.get("authorization", ""))
        scheme, _, secret = shown.partition(" ")
        secret = secret.strip() if scheme.lower() == "bearer" else str(metadata.get("x-api-key", ""))
        key = keys.find(secret) if secret else None
        if key is not None:
            return key
        if secret:
            raise NotAllowed("this key is not known here, or good no more")
        raise NotAllowed("a key is needed here", hint="send it as metadata: `authorization: Bearer KEY` or `x-api-key`")
