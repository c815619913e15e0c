"""Which key opens which path."""

from __future__ import annotations

from dataclasses import dataclass

from .keys import Scope
from .shapes import is_below


@dataclass(frozen=True)
class Door:
    """`needs_key`: somebody known must ask; `scope`: whose key must have it, None for any good key."""

    needs_key: bool = True
    scope: Scope | None = None


OPEN = Door(needs_key=False)
_ANY = Door()
_CHAT, _EMBEDDINGS, _TRAINING, _METRICS, _ADMIN = (Door(scope=scope) for scope in Scope)

# Exactly these: what probes of a load balancer ask for, and pages without anything of anybody's in them.
_EXACT = {
    "/": OPEN,
    "/favicon.ico": OPEN,
    "/health": OPEN,
    "/ready": OPEN,
    "/openapi.json": OPEN,
    "/v2/health/live": OPEN,
    "/v2/health/ready": OPEN,
    "/v2": _ANY,
    "/metrics": _METRICS,
    "/tokenize": _CHAT,
    "/detokenize": _CHAT,
    "/v1/completions": _CHAT,
    "/v1/embeddings": _EMBEDDINGS,
}
# These and all below them; the longest that fits counts.
_BELOW = {
    "/static": OPEN,
    "/v1/models": _ANY,
    "/v1/chat": _CHAT,
    "/v1/messages": _CHAT,
    "/v1/responses": _CHAT,
    "/v1/sessions": _ADMIN,
    "/v1/files": _TRAINING,
    "/v1/fine_tuning": _TRAINING,
    "/v2/models": _CHAT,
    "/v2/repository": _ANY,
    "/web": _ADMIN,
}


def door_of(path: str) -> Door:
    """A path that nobody thought of is for the key that may do everything else."""
    exact = _EXACT.get(path)
    if exact is not None:
        return exact
    fitting = [start for start in _BELOW if is_below(path, start)]
    return _BELOW[max(fitting, key=len)] if fitting else _ADMIN
