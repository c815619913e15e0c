"""How many tokens a text may be, where nobody has the model's tokenizer: four bytes of UTF-8 each.

Close for English and code with the vocabularies of today, and never far off for other scripts. Budgets that must hold
exactly need the server's own count.
"""

from __future__ import annotations

from collections.abc import Iterable

from ...schemas.serve import ChatMessage, Generate

BYTES_PER_TOKEN = 4
# What a chat template writes around one message: its role, and marks before and after.
TOKENS_PER_MESSAGE = 4


def estimate_tokens(text: str) -> int:
    """0 for no text, else at least 1."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def message_tokens(message: ChatMessage) -> int:
    calls = sum(estimate_tokens(call.name) + estimate_tokens(call.arguments) for call in message.tool_calls)
    return TOKENS_PER_MESSAGE + estimate_tokens(message.content) + calls


def conversation_tokens(messages: Iterable[ChatMessage]) -> int:
    return sum(map(message_tokens, messages))


def prompt_tokens(request: Generate) -> int:
    """Of all that a request sends: messages or prompt, and the tools that it offers."""
    offered = sum(
        estimate_tokens(tool.name) + estimate_tokens(tool.description) + estimate_tokens(tool.parameters)
        for tool in request.tools
    )
    return conversation_tokens(request.messages) + estimate_tokens(request.prompt) + len(request.prompt_ids) + offered


def cut_to_tokens(text: str, num_tokens: int) -> str:
    """The beginning of a text that is estimated at no more than so many tokens."""
    return text.encode("utf-8", "replace")[: num_tokens * BYTES_PER_TOKEN].decode("utf-8", "ignore")
