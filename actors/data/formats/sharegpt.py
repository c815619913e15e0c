"""ShareGPT: `{"conversations": [{from: human|gpt|system|tool, value}]}`.

The names that derived data sets have for the same speakers are known too, and a `system` beside the conversation.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Role, Sample, Turn, system
from .format import Format, conversation, converted

_SPEAKERS = {
    "human": Role.USER,
    "user": Role.USER,
    "gpt": Role.ASSISTANT,
    "chatgpt": Role.ASSISTANT,
    "assistant": Role.ASSISTANT,
    "system": Role.SYSTEM,
    "tool": Role.TOOL,
    "observation": Role.TOOL,
}
# Those that MSAgent does not use: they tell the two formats apart.
_TELLING = {"human", "gpt", "chatgpt", "tool", "observation"}


class Said(msgspec.Struct, rename={"speaker": "from"}):
    speaker: str
    value: str


class ShareGPT(msgspec.Struct):
    conversations: list[Said]
    system: str | None = None


def speakers(record: Any) -> set[Any]:
    """Who speaks in a record of this shape; empty if it is none."""
    said = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        return set()
    return {name for one in said if isinstance(name := one.get("from"), str)}


def _recognises(record: Any) -> bool:
    return bool(speakers(record) & _TELLING)


def _read(record: Any) -> Sample:
    found = converted(record, ShareGPT)
    turns = [system(found.system)] if found.system else []
    for one in found.conversations:
        role = _SPEAKERS.get(one.speaker.lower())
        if role is None:
            raise Unfit(f"nobody is known by the name '{one.speaker}' (from: human, gpt, system, tool)")
        turns.append(Turn(role, one.value, loss=role is Role.ASSISTANT))
    return conversation(turns)


FORMAT = Format("sharegpt", frozenset({"conversations"}), _recognises, _read)
