"""Who may come in, by whatever protocol: the key that is shown, its scope, its limits, and the counting of all that."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from .config import GatewayConfig
from .doors import Door
from .errors import LimitReached, NotAllowed
from .http_meters import HttpMeter
from .keys import Key, Keys
from .visit import Visit


class Entrance:
    """Without `keys_file` in the configuration everybody may come in. Making one raises ConfigError for a file that is
    damaged or not there.

    `how`: how a key is sent by the protocol, for who sends none.
    """

    def __init__(self, config: GatewayConfig, meter: HttpMeter, how: str) -> None:
        self._keys = Keys(Path(config.keys_file).expanduser()) if config.keys_file else None
        self._meter = meter
        self._how = how

    def visit(self, door: Door, asked: str, shown: Callable[[str], str]) -> Visit:
        """Who asks, and may: not counted yet. `asked`: what for, in words; `shown`: what the client sent under a name,
        "" for nothing. Raises NotAllowed."""
        if self._keys is None or not door.needs_key:
            return Visit()
        key = self._key(self._keys, shown)
        meter = self._meter.key(key.name)
        if door.scope is not None and door.scope not in key.scopes:
            meter.refused += 1
            raise NotAllowed(f"the key '{key.name}' may not {asked}: it lacks the scope {door.scope}", 403)
        return Visit(key.name, self._keys.allowance(key), meter)

    def _key(self, keys: Keys, shown: Callable[[str], str]) -> Key:
        scheme, _, secret = shown("authorization").partition(" ")
        secret = secret.strip() if scheme.lower() == "bearer" else shown("x-api-key")
        key = keys.find(secret) if secret else None
        if key is not None:
            return key
        self._meter.strangers += 1
        if secret:
            raise NotAllowed("this key is not known here, or good no more")
        raise NotAllowed("a key is needed here", hint=self._how)


def admit(visit: Visit) -> None:
    """Count one more request of that visitor. Raises LimitReached."""
    if visit.allowance is None or visit.meter is None:
        return
    what, seconds = visit.allowance.admit(time.monotonic())
    if what:
        visit.meter.limited += 1
        per_minute = visit.allowance.limits[what == "tokens"]
        raise LimitReached(
            f"the key '{visit.name}' has used up its {what}: it has {per_minute} {what} a minute", seconds
        )
    visit.meter.requests += 1
