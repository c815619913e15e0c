"""MOSS: `{meta_instruction, num_turns, chat: {turn_1: {Human, "Inner Thoughts", Commands, "Tool Responses", MOSS}}}`.

In these data each value may be wrapped in its speaker's marks, `<|Commands|>: Search("x")<eoc>`, and "None" stands for
nothing. The marks of thoughts and commands stay (or are added), since they tell these from the answer; the others go,
since a chat template writes who speaks. What the assistant says before it has the tools' responses, and the answer
after them, are two of its turns.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Sample, Turn, assistant, system, tool, user
from .format import Format, conversation, converted

THOUGHTS, COMMANDS = ("<|Inner Thoughts|>: ", "<eot>"), ("<|Commands|>: ", "<eoc>")
_MARKS = re.compile(r"^\s*<\|[\w ]+\|>:?\s*|\s*<eo[htcrm]>\s*$")


class MossTurn(msgspec.Struct, rename={"human": "Human", "thoughts": "Inner Thoughts", "commands": "Commands"}):
    human: str
    answer: str = msgspec.field(name="MOSS")
    thoughts: str | None = None
    commands: str | None = None
    responses: str | None = msgspec.field(name="Tool Responses", default=None)


class Moss(msgspec.Struct):
    chat: dict[str, MossTurn]
    meta_instruction: str | None = None
    num_turns: int | None = None


def _recognises(record: Any) -> bool:
    chat = record.get("chat") if isinstance(record, dict) else None
    return isinstance(chat, dict) and "turn_1" in chat


def _read(record: Any) -> Sample:
    moss = converted(record, Moss)
    names = [f"turn_{number}" for number in range(1, len(moss.chat) + 1)]
    if set(names) != set(moss.chat) or moss.num_turns not in (None, len(names)):
        raise Unfit(f"num_turns is {moss.num_turns}, and the turns are {', '.join(moss.chat)}")
    turns = [system(moss.meta_instruction.strip())] if moss.meta_instruction and moss.meta_instruction.strip() else []
    for name in names:
        turns += _turns(moss.chat[name])
    return conversation(turns)


def _turns(turn: MossTurn) -> list[Turn]:
    before = [_wrapped(turn.thoughts, THOUGHTS), _wrapped(turn.commands, COMMANDS)]
    said = "\n".join(part for part in before if part)
    responses, answer = _bare(turn.responses), _bare(turn.answer)
    asked = user(_bare(turn.human))
    if responses:
        if not said:
            raise Unfit("there are tool responses, but neither thoughts nor commands before them")
        return [asked, assistant(said), tool(responses), assistant(answer)]
    if not answer:
        raise Unfit("a turn of the assistant is empty")
    return [asked, assistant("\n".join(part for part in (said, answer) if part))]


def _wrapped(value: str | None, marks: tuple[str, str]) -> str:
    bare = _bare(value)
    return f"{marks[0]}{bare}{marks[1]}" if bare else ""


def _bare(value: str | None) -> str:
    """Without marks and space around it; empty for MOSS's "None"."""
    bare = _MARKS.sub("", value or "").strip()
    return "" if bare == "None" else bare


FORMAT = Format("moss", frozenset({"chat"}), _recognises, _read)
