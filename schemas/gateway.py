"""What is said to a gateway itself; what its clients say comes by its own protocol."""

from __future__ import annotations

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
