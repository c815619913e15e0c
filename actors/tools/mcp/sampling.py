"""A server's requests for text from the company's model: for those that the configuration allows it to.

The directory of tools reads this module too, also where the SDK is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ....runtime.errors import CallboardError
from ....runtime.log import log
from ....schemas.question import Answered, AskQuestion, Outcome
from ....schemas.serve import ChatMessage, FinishReason, Generate
from ....schemas.serve_stats import GetStats
from .config import SamplingPolicy, ServerConfig

if TYPE_CHECKING:
    import mcp_types

    from ....runtime.node import Node

ENGINE = "engine.scheduler"
MAX_PROMPT = 256 << 10

Ask = Callable[[AskQuestion], Awaitable[Answered]]


def generate_of(params: mcp_types.CreateMessageRequestParams, config: ServerConfig, server: str) -> Generate | str:
    """The request for the engine; a text of what is wrong where it can be none."""
    import mcp_types

    if params.tools:
        return "tools in sampling are not supported here"
    messages = [ChatMessage("system", params.system_prompt)] if params.system_prompt else []
    for message in params.messages:
        texts: list[str] = []
        for block in message.content_as_list:
            if not isinstance(block, mcp_types.TextContent):
                return f"the model here reads text alone, no {block.type}"
            texts.append(block.text)
        messages.append(ChatMessage(message.role, "\n".join(texts)))
    if sum(len(message.content) for message in messages) > MAX_PROMPT:
        return f"the prompt is over {MAX_PROMPT} characters"
    return Generate(
        messages=tuple(messages),
        max_tokens=max(1, min(params.max_tokens, config.sampling_max_tokens)),
        temperature=max(0.0, params.temperature or 0.0),
        stop=tuple(params.stop_sequences or ()),
        client=f"mcp.{server}",
    )


async def sample(
    node: Node, params: mcp_types.CreateMessageRequestParams, config: ServerConfig, server: str, asker: str, ask: Ask
) -> mcp_types.CreateMessageResult | mcp_types.ErrorData:
    """Answer it, or say why not. With the policy `ask` a person sees the whole prompt first."""
    import mcp_types

    request = generate_of(params, config, server)
    if isinstance(request, str):
        return refused(request)
    if config.sampling is SamplingPolicy.ASK:
        answered = await ask(
            AskQuestion(
                f"The MCP server {server} asks to use the company's model, for up to {request.max_tokens} tokens.",
                asker,
                kind="sampling",
                schema='{"type": "boolean"}',
                proposal="true",
                details=json.dumps([{"role": one.role, "content": one.content} for one in request.messages])[:60_000],
            )
        )
        if answered.outcome is not Outcome.ACCEPTED or answered.value != "true":
            return refused("a person refused it")
    try:
        stats = await node.actor(ENGINE).ask(GetStats())
        completion = await node.actor(ENGINE).ask(request, config.timeout_s)
    except CallboardError as error:
        log.info("MCP server %s asked for text and got none: %s", server, error)
        return refused(f"no text could be had: {error.message}")
    reason = "maxTokens" if completion.finish_reason is FinishReason.LENGTH else "endTurn"
    return mcp_types.CreateMessageResult(
        role="assistant",
        content=mcp_types.TextContent(text=completion.text),
        model=stats.model,
        stop_reason=reason,
    )


def refused(why: str) -> mcp_types.ErrorData:
    import mcp_types

    return mcp_types.ErrorData(code=mcp_types.INVALID_REQUEST, message=why)
