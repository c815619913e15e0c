"""What the tests of upstreams share: a model behind the tests' own endpoint, and an answer of it, piece by piece."""

from __future__ import annotations

from typing import Any

from endpoint import (
    Endpoint,
)

from callboard.actors.agent.upstream.actor import Upstream
from callboard.actors.agent.upstream.config import UpstreamConfig
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.serve import (
    ChatMessage,
    Generate,
    Token,
)

KEY = "sk-very-secret-0123456789"
HELLO = Generate(messages=(ChatMessage("user", "hello"),), max_tokens=20)


async def upstream(node: Node, endpoint: Endpoint, **options: Any) -> Ref:
    settings = {"backoff_s": 0.001, "retries": 3, **options}
    return await node.spawn(Upstream, UpstreamConfig(model="m", base_url=endpoint.url, **settings), name="gpt")


async def streamed(model: Ref, request: Generate = HELLO) -> tuple[list[str], Any]:
    async with model.stream(request) as items:
        pieces = [token.text async for token in items if isinstance(token, Token)]
    return pieces, items.result
