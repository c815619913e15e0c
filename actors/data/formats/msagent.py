"""MSAgent: `{"conversations": [{from: system|user|assistant, value}]}`, where the assistant's value has segments.

`<|startofthink|>...<|endofthink|>` is the call that it decides on, as JSON in a fence or bare, and stays as it is.
`<|startofexec|>...<|endofexec|>` is what came back: it is nothing that the assistant says, so it becomes a turn of the
tool, without loss, and what follows it another turn of the assistant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Role, Sample, Turn, assistant, tool
from .format import Format, conversation, converted
from .sharegpt import ShareGPT, speakers

_THINK = re.compile(r"<\|startofthink\|>(.*?)<\|endofthink\|>", re.DOTALL)
_EXEC = re.compile(r"<\|startofexec\|>(.*?)<\|endofexec\|>", re.DOTALL)
_MARK = re.compile(r"<\|(?:start|end)of(?:think|exec)\|>")
_FENCE = re.compile(r"^```\w*\s*|\s*```$")


def _recognises(record: Any) -> bool:
    found = speakers(record)
    return bool(found) and found <= {"system", "user", "assistant"}


def _read(record: Any) -> Sample:
    turns: list[Turn] = []
    for one in converted(record, ShareGPT).conversations:
        if one.speaker == "assistant":
            turns += _assistant(one.value)
        elif one.speaker in ("system", "user"):
            turns.append(Turn(Role(one.speaker), one.value))
        else:
            raise Unfit(f"nobody is known by the name '{one.speaker}' (from: system, user, assistant)")
    return conversation(turns)


def _assistant(value: str) -> Iterator[Turn]:
    for segment in _THINK.finditer(value):
        _check_json(segment[1])
    if _MARK.search(_EXEC.sub("", _THINK.sub("", value))):
        raise Unfit("a <|startof...|> has no <|endof...|>, or the other way round")
    said, *rest = _EXEC.split(value)
    if not rest or said.strip():  # an empty answer is found by whoever takes the turns
        yield assistant(said.strip())
    for answer, after in zip(rest[::2], rest[1::2], strict=True):
        yield tool(_unfenced(answer))
        if after.strip():
            yield assistant(after.strip())


def _unfenced(segment: str) -> str:
    return _FENCE.sub("", segment.strip())


def _check_json(segment: str) -> None:
    try:
        msgspec.json.decode(_unfenced(segment))
    except msgspec.DecodeError as error:
        raise Unfit(f"a segment of the assistant's turn is no JSON: {error}") from error


FORMAT = Format("msagent", frozenset({"conversations"}), _recognises, _read)
