"""A conversation within a budget of tokens: plain logic, the same messages and budget give the same result.

What goes first is what is missed least. Results of tools are shortened, the oldest first; then whole exchanges go, the
oldest first, or a model's summary takes their place. What the system said and the first task stay as they are, and a
tool call never goes without its answer, nor an answer without its call: servers refuse either.

```
system  system  task | exchange  exchange  exchange  exchange
\\_____ head: stays _/ \\__ dropped or summarised _/  \\_ stays_/
```
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from ....schemas.serve import ChatMessage
from ..token_estimate import conversation_tokens, cut_to_tokens, estimate_tokens, message_tokens
from .errors import ConversationFull

Count = Callable[[ChatMessage], int]
Summarise = Callable[[Sequence[ChatMessage], int], Awaitable[str]]
IsResult = Callable[[ChatMessage], bool]

SUMMARY_HEADING = "Summary of what came before:"
# What a shortened result keeps.
SHORT_RESULT_TOKENS = 128
# What of the budget a summary may take.
SUMMARY_SHARE = 0.25


def is_tool_result(message: ChatMessage) -> bool:
    return message.role == "tool"


@dataclass(frozen=True, slots=True)
class Limits:
    """`budget`: tokens for all of it. `count`: of one message, by the model's tokenizer where there is one.

    `is_result`: which messages are results of tools, for those who write them into another role's turn.
    """

    budget: int
    count: Count = message_tokens
    is_result: IsResult = is_tool_result
    short_result: int = SHORT_RESULT_TOKENS

    def tokens(self, messages: Sequence[ChatMessage]) -> int:
        return sum(map(self.count, messages))


@dataclass(frozen=True, slots=True)
class Compaction:
    """`messages`: what fits. `dropped`: what does not, as it was before anything was shortened."""

    messages: tuple[ChatMessage, ...]
    dropped: tuple[ChatMessage, ...] = ()


def compact(messages: Sequence[ChatMessage], limits: Limits, *, reserve: int = 0) -> Compaction:
    """Shorten results and drop exchanges until all fits into the budget less `reserve` tokens (for a summary).

    The last exchange always stays; where it is too large by itself, its results are shortened as far as it takes.
    Raises ConversationFull where the head and that exchange without results are too large still.
    """
    budget = limits.budget - reserve
    if limits.tokens(messages) <= budget:
        return Compaction(tuple(messages))
    head, exchanges = split(messages)
    last = exchanges[-1:]
    shortened = _shorten_oldest(head, exchanges, limits, budget)
    kept = _newest_that_fit(head, shortened, limits, budget)
    if not kept and last:
        kept = [_squeeze(last[0], limits, budget - limits.tokens(head))]
    messages = (*head, *(message for exchange in kept for message in exchange))
    if limits.tokens(messages) > budget:
        raise ConversationFull(
            f"what must stay of the conversation takes {limits.tokens(messages)} tokens; there is room for {budget}"
        )
    gone = exchanges[: len(exchanges) - len(kept)]
    return Compaction(messages, tuple(message for exchange in gone for message in exchange))


async def compact_with_summary(
    messages: Sequence[ChatMessage], limits: Limits, summarise: Summarise
) -> tuple[ChatMessage, ...]:
    """As `compact`, with a summary of what is dropped after the head. `summarise` is given that (with the summary
    before it, if there is one) and how many tokens it may take; a longer one is cut. Its errors are the caller's."""
    if limits.tokens(messages) <= limits.budget:
        return tuple(messages)
    earlier, rest = take_summary(messages)
    room = max(1, int(limits.budget * SUMMARY_SHARE))
    compaction = compact(rest, limits, reserve=room)
    if not compaction.dropped and not earlier:
        return compaction.messages
    told = compaction.dropped
    if earlier:
        told = (ChatMessage("user", f"{SUMMARY_HEADING}\n{earlier}"), *told)
    # The heading and the marks of one message are part of what was kept free.
    length = room - limits.count(ChatMessage("user", SUMMARY_HEADING)) - 1
    if length < 1:
        return compaction.messages
    summary = earlier if not compaction.dropped else await summarise(told, length)
    return put_summary(compaction.messages, cut_to_tokens(summary.strip(), length))


def put_summary(messages: Sequence[ChatMessage], summary: str) -> tuple[ChatMessage, ...]:
    """A message of its own after the head, in the user's role, which every chat template knows."""
    if not summary:
        return tuple(messages)
    head, exchanges = split(messages)
    note = ChatMessage("user", f"{SUMMARY_HEADING}\n{summary}")
    return (*head, note, *(message for exchange in exchanges for message in exchange))


def take_summary(messages: Sequence[ChatMessage]) -> tuple[str, tuple[ChatMessage, ...]]:
    """The summary that `put_summary` put there ("": none), and the messages without it."""
    head, _ = split(messages)
    place = len(head)
    if place < len(messages):
        message = messages[place]
        if message.role == "user" and message.content.startswith(SUMMARY_HEADING + "\n"):
            return message.content.removeprefix(SUMMARY_HEADING + "\n"), (*messages[:place], *messages[place + 1 :])
    return "", tuple(messages)


def in_turns(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """With neighbours of the user's or the system's role made one, for templates that want roles to take turns."""
    merged: list[ChatMessage] = []
    for message in messages:
        if merged and merged[-1].role == message.role and message.role in ("user", "system"):
            merged[-1] = msgspec.structs.replace(merged[-1], content=f"{merged[-1].content}\n\n{message.content}")
        else:
            merged.append(message)
    return tuple(merged)


def split(messages: Sequence[ChatMessage]) -> tuple[tuple[ChatMessage, ...], list[tuple[ChatMessage, ...]]]:
    """The head (the system's messages and the first task), and what cannot be parted after it: a message with tool
    calls and all that answers them, or any other message by itself."""
    place = 0
    while place < len(messages) and messages[place].role in ("system", "developer"):
        place += 1
    if place < len(messages) and messages[place].role == "user":
        place += 1
    exchanges: list[list[ChatMessage]] = []
    for message in messages[place:]:
        answers = message.role == "tool" and exchanges and exchanges[-1][0].tool_calls
        if answers:
            exchanges[-1].append(message)
        else:
            exchanges.append([message])
    return tuple(messages[:place]), [tuple(exchange) for exchange in exchanges]


def _shorten_oldest(
    head: tuple[ChatMessage, ...], exchanges: list[tuple[ChatMessage, ...]], limits: Limits, budget: int
) -> list[tuple[ChatMessage, ...]]:
    """Results cut to `short_result`, the oldest first, until all fits; those of the last exchange are left alone."""
    shortened = list(exchanges)
    total = limits.tokens(head) + sum(limits.tokens(exchange) for exchange in shortened)
    for place, exchange in enumerate(exchanges[:-1]):
        if total <= budget:
            break
        shortened[place] = tuple(
            shorten(message, limits.short_result) if limits.is_result(message) else message for message in exchange
        )
        total += limits.tokens(shortened[place]) - limits.tokens(exchange)
    return shortened


def _newest_that_fit(
    head: tuple[ChatMessage, ...], exchanges: list[tuple[ChatMessage, ...]], limits: Limits, budget: int
) -> list[tuple[ChatMessage, ...]]:
    room = budget - limits.tokens(head)
    first = len(exchanges)
    while first and (room := room - limits.tokens(exchanges[first - 1])) >= 0:
        first -= 1
    return exchanges[first:]


def _squeeze(exchange: tuple[ChatMessage, ...], limits: Limits, room: int) -> tuple[ChatMessage, ...]:
    """An exchange that is too large by itself: each result is given an equal share of what room is left."""
    results = [message for message in exchange if limits.is_result(message)]
    if not results:
        return exchange
    rest = limits.tokens([message for message in exchange if not limits.is_result(message)])
    bare = limits.tokens([msgspec.structs.replace(message, content="") for message in results])
    share = max(0, room - rest - bare) // len(results)
    while True:
        squeezed = tuple(shorten(m, share) if limits.is_result(m) else m for m in exchange)
        # Where tokens are counted and not estimated, the share was a guess.
        if share == 0 or limits.tokens(squeezed) <= room:
            return squeezed
        share = share * 3 // 4


def shorten(message: ChatMessage, num_tokens: int) -> ChatMessage:
    """A message whose text is the beginning and the end of what it was, with a mark of what is missing between."""
    text = message.content
    total = estimate_tokens(text)
    if total <= num_tokens:
        return message
    mark = f" [… {total - num_tokens} tokens left out …] "
    room = num_tokens - estimate_tokens(mark)
    if room < 2:
        return msgspec.structs.replace(message, content=cut_to_tokens(mark.strip(), num_tokens))
    begin = cut_to_tokens(text, room * 2 // 3)
    end = cut_to_tokens(text[::-1], room - room * 2 // 3)[::-1]
    return msgspec.structs.replace(message, content=begin + mark + end)


__all__ = [
    "Compaction",
    "Limits",
    "compact",
    "compact_with_summary",
    "conversation_tokens",
    "in_turns",
    "put_summary",
    "shorten",
    "split",
    "take_summary",
]
