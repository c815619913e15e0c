"""What a format is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec

from ..errors import Unfit
from ..samples import Conversation, Role, Sample, Turn

T = TypeVar("T")


class Format(NamedTuple):
    """`fields`: the columns that a table of this format has. `recognises`: whether a decoded record looks like one of
    it, by its keys. `read`: the record as a sample; raises Unfit with the reason."""

    name: str
    fields: frozenset[str]
    recognises: Callable[[Any], bool]
    read: Callable[[Any], Sample]


def converted(record: Any, kind: type[T]) -> T:
    """`record` as the typed object `kind`; Unfit says which field is wrong."""
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise Unfit(_plainly(str(error))) from error


def conversation(turns: list[Turn], tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    """Raises Unfit where there is nothing to learn, or an answer that says nothing."""
    check_turns(turns)
    if not any(turn.loss for turn in turns):
        raise Unfit("no turn of the assistant carries loss")
    return Conversation(tuple(turns), tools)


def check_turns(turns: list[Turn]) -> None:
    said = [turn for turn in turns if turn.role is Role.ASSISTANT]
    if not said:
        raise Unfit("there is no turn of the assistant")
    if any(not (turn.content.strip() or turn.tool_calls or turn.reasoning.strip()) for turn in said):
        raise Unfit("a turn of the assistant is empty")


def _plainly(message: str) -> str:
    """msgspec's message with the place as people write it: `$.a[0].b` is a[0].b."""
    what, at, place = message.partition(" - at `")
    what = what.replace("`", "'")
    return f"{place.rstrip('`').removeprefix('$').lstrip('.')}: {what}" if at else what
