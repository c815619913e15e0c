"""The company's models, offered to a host: a tool `ask_<model>` for each engine that runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import mcp_types

from ....runtime.errors import CallboardError, RequestInvalid
from ....runtime.foreign_schema import BadSchema, BadValue, ForeignSchema
from ....runtime.log import log
from ....schemas.serve import ChatMessage, Generate
from ....schemas.serve_stats import EngineStats, GetStats
from ..errors import ToolArguments
from .offered import Offer, Say, host_name

if TYPE_CHECKING:
    from ....runtime.client import Client

_KIND = "serve.engine"
LOOK_S = 5.0
# Streamed text is told of in pieces of so many characters.
TELL_EVERY = 200

_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "description": "What to ask the model."},
        "system": {"type": "string", "description": "What the model is to be told beforehand."},
        "max_tokens": {"type": "integer", "minimum": 1, "description": "The longest answer; by default the engine's."},
        "temperature": {"type": "number", "minimum": 0, "description": "0: the likeliest answer, always the same."},
    },
    "required": ["prompt"],
    "additionalProperties": False,
}
_OUTPUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "finish_reason": {"type": "string"},
        "prompt_tokens": {"type": "integer"},
        "completion_tokens": {"type": "integer"},
    },
    "required": ["text", "finish_reason"],
}


class ModelSource:
    """Engines are found by their kind, each time: one that was started just now is there."""

    def __init__(self, bus: Client) -> None:
        self._bus = bus

    async def offers(self) -> list[Offer]:
        found: dict[str, Offer] = {}
        for address, stats in await self.running():
            name = host_name(f"ask_{stats.model}", found)
            found[name] = ModelOffer(self._bus, name, address, stats)
        return list(found.values())

    async def running(self) -> list[tuple[str, EngineStats]]:
        """Address and state of each engine that answers."""
        found: list[tuple[str, EngineStats]] = []
        for info in await self._bus.actors():
            if info.kind != _KIND:
                continue
            try:
                found.append((info.address, await self._bus.actor(info.address).ask(GetStats(), LOOK_S)))
            except CallboardError as error:  # it is loading, or has just gone
                log.debug("the engine %s is not offered: %s", info.address, error)
        return found


class ModelOffer:
    def __init__(self, bus: Client, name: str, address: str, stats: EngineStats) -> None:
        self._bus = bus
        self._address = address
        self._model = stats.model
        self.tool = mcp_types.Tool(
            name=name,
            title=f"Ask {stats.model}",
            description=f"Ask the language model {stats.model}, which runs here, and get its answer. It reads "
            f"{stats.context_length} tokens and remembers nothing from one call to the next.",
            input_schema=_SCHEMA,
            output_schema=_OUTPUT,
            annotations=mcp_types.ToolAnnotations(
                read_only_hint=True, destructive_hint=False, idempotent_hint=False, open_world_hint=False
            ),
        )

    async def call(self, arguments: dict[str, Any], say: Say) -> mcp_types.CallToolResult:
        try:
            ForeignSchema(_SCHEMA).check(arguments)
        except (BadValue, BadSchema) as error:
            raise ToolArguments(f"the arguments do not fit: {error}") from None
        messages = [ChatMessage("user", arguments["prompt"])]
        if arguments.get("system"):
            messages.insert(0, ChatMessage("system", arguments["system"]))
        request = Generate(
            messages=tuple(messages),
            max_tokens=arguments.get("max_tokens"),
            temperature=float(arguments.get("temperature", 0.0)),
            client="mcp",
        )
        try:
            async with self._bus.actor(self._address).stream(request) as tokens:
                text, told, count = "", 0, 0
                async for token in tokens:
                    text += token.text
                    count += len(token.token_ids)
                    if len(text) - told >= TELL_EVERY:
                        await say(float(count), float(request.max_tokens or 0), text[told:])
                        told = len(text)
                done = tokens.result
        except RequestInvalid as error:
            raise ToolArguments(error.message, hint=error.hint) from error
        structured = {
            "text": done.text,
            "finish_reason": done.finish_reason.value,
            "prompt_tokens": done.usage.prompt_tokens,
            "completion_tokens": done.usage.completion_tokens,
        }
        return mcp_types.CallToolResult(content=[mcp_types.TextContent(text=done.text)], structured_content=structured)


def models_text(running: list[tuple[str, EngineStats]]) -> str:
    """The resource `callboard://models`."""
    return json.dumps(
        [
            {
                "model": stats.model,
                "engine": address,
                "dtype": stats.dtype,
                "context_length": stats.context_length,
                "running": stats.running,
                "waiting": stats.waiting,
            }
            for address, stats in running
        ],
        indent=2,
    )
