"""A summary of a part of a conversation, by a model."""

from __future__ import annotations

from collections.abc import Sequence

from ....runtime.refs import Ref
from ....schemas.serve import ChatMessage, Generate
from .conversation import Summarise

INSTRUCTION = (
    "Below is the earlier part of a conversation between a user, an assistant and its tools. Write down what is needed "
    "to go on without it: what was asked, what was found (names, numbers and paths exactly), what was decided, and "
    "what is still open. Write only that, briefly."
)


def summary_request(messages: Sequence[ChatMessage], max_tokens: int, model: str = "") -> Generate:
    """The conversation goes in as text, so that a model does not answer it, and its tool calls need no tools."""
    told = "\n\n".join(filter(None, map(_as_text, messages)))
    return Generate(
        messages=(ChatMessage("system", INSTRUCTION), ChatMessage("user", told)), model=model, max_tokens=max_tokens
    )


def summarise_by_model(ref: Ref, model: str = "", timeout: float = 300.0) -> Summarise:
    """For `compact_with_summary`. Raises what the model raises."""

    async def summarise(messages: Sequence[ChatMessage], max_tokens: int) -> str:
        return (await ref.ask(summary_request(messages, max_tokens, model), timeout)).text

    return summarise


def _as_text(message: ChatMessage) -> str:
    calls = "".join(f"\n(calls {call.name} with {call.arguments})" for call in message.tool_calls)
    said = f"{message.content}{calls}".strip()
    return f"[{message.role}] {said}" if said else ""
