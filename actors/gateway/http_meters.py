"""What a gateway counts of its HTTP requests: by route and status, and by key."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .histogram import HTTP_S, Histogram


@dataclass
class KeyMeter:
    """`refused`: for want of a scope; `limited`: over a rate."""

    requests: int = 0
    refused: int = 0
    limited: int = 0
    tokens: int = 0


@dataclass
class HttpMeter:
    """`strangers`: requests without a good key, where one was needed."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    seconds: dict[str, Histogram] = field(default_factory=dict)
    keys: dict[str, KeyMeter] = field(default_factory=dict)
    strangers: int = 0

    def ended(self, scope: Any, status: int, seconds: float) -> None:
        """`status` 0: the client went away before there was one."""
        # The route's pattern: paths are made up by clients, and each would be a series of its own.
        route = getattr(scope.get("route"), "path", "") or "none"
        method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD", "OPTIONS") else "other"
        self.requests[route, method, status] += 1
        if route not in self.seconds:
            self.seconds[route] = Histogram(HTTP_S)
        self.seconds[route].add(seconds)

    def key(self, name: str) -> KeyMeter:
        return self.keys.setdefault(name, KeyMeter())
