"""Guanaco and OpenAssistant: `{"text": "### Human: ...### Assistant: ..."}`.

A last turn of the human that nobody answered is dropped.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Role, Sample, assistant, user
from .format import Format, conversation, converted

_SPEAKER = re.compile(r"###\s*(Human|Assistant):")


class Guanaco(msgspec.Struct):
    text: str


def _recognises(record: Any) -> bool:
    text = record.get("text") if isinstance(record, dict) else None
    return isinstance(text, str) and _SPEAKER.match(text.lstrip()) is not None


def _read(record: Any) -> Sample:
    before, *parts = _SPEAKER.split(converted(record, Guanaco).text)
    if before.strip() or not parts:
        raise Unfit("the text does not begin with '### Human:' or '### Assistant:'")
    turns = [
        (user if speaker == "Human" else assistant)(said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    while turns and turns[-1].role is Role.USER:
        turns.pop()
    return conversation(turns)


FORMAT = Format("guanaco", frozenset({"text"}), _recognises, _read)
