"""What is said to a gateway itself; what its clients say comes by its own protocol."""

from __future__ import annotations

import msgspec

from .base import Message, Request


class GatewayInfo(Message, frozen=True, kw_only=True, tag="gateway.info"):
    """`url`: where it listens. The counts are since it started; `open`: requests under way; `connections`: of clients,
    as far as it is told of them (of gRPC it is not); `tasks`: what its process's event loop has under way, the node's
    own tasks among it."""

    url: str
    requests: int = 0
    open: int = 0
    failed: int = 0
    connections: int = 0
    tasks: int = 0


class AskGateway(Request[GatewayInfo], frozen=True, tag="gateway.ask"):
    """Ask a gateway where it listens."""


class ResponseUnderWay(Message, frozen=True, tag="gateway.response_under_way"):
    """`known`: whether that gateway was working on it."""

    known: bool


class FindResponse(Request[ResponseUnderWay], frozen=True, tag="gateway.find_response"):
    """Ask a gateway whether it works on a response in the background. `cancel`: it is to stop; the answer comes when
    that is written down."""

    response: str
    cancel: bool = False


class Spread(msgspec.Struct, frozen=True):
    """A histogram. `counts[i]`: how many were at most `bounds[i]` and above the one before; the last are beyond all."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float


class CallsMeter(msgspec.Struct, frozen=True):
    """Of one method: how often it ended with each status, and how long calls took."""

    method: str
    statuses: tuple[tuple[str, int], ...]
    seconds: Spread


class AnswersMeter(msgspec.Struct, frozen=True):
    """Of one model on one engine. `ended`: how many answers ended for each reason."""

    model: str
    engine: str
    ended: tuple[tuple[str, int], ...]
    prompt_tokens: int
    generation_tokens: int
    to_first_token: Spread
    whole: Spread


class KeyCounts(msgspec.Struct, frozen=True):
    """Of one key; see `callboard_key_*` in docs/gateway.md."""

    key: str
    requests: int
    refused: int
    limited: int
    tokens: int


class GatewayMeters(Message, frozen=True, kw_only=True, tag="gateway.meters"):
    """All that a gRPC gateway counts, since it started. `open`: calls under way."""

    open: int
    unknown_keys: int = 0
    calls: tuple[CallsMeter, ...] = ()
    answers: tuple[AnswersMeter, ...] = ()
    keys: tuple[KeyCounts, ...] = ()


class AskGatewayMeters(Request[GatewayMeters], frozen=True, tag="gateway.ask_meters"):
    """Ask a gRPC gateway what it counts."""
