"""Preferences: `{prompt, chosen, rejected}`, each a text or a list of OpenAI's messages.

Where both answers are whole conversations and there is no prompt, it is what they begin with in common.
"""

from __future__ import annotations

from itertools import takewhile
from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Preference, Role, Sample, Turn, assistant, user
from .format import Format, check_turns, converted
from .messages import turns_of


class Pair(msgspec.Struct):
    chosen: str | list[dict[str, Any]]
    rejected: str | list[dict[str, Any]]
    prompt: str | list[dict[str, Any]] | None = None


def _recognises(record: Any) -> bool:
    return isinstance(record, dict) and "chosen" in record and "rejected" in record


def _read(record: Any) -> Sample:
    pair = converted(record, Pair)
    prompt = _turns(pair.prompt, user) if pair.prompt else []
    chosen, rejected = _turns(pair.chosen, assistant), _turns(pair.rejected, assistant)
    shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    if shared == min(len(chosen), len(rejected)):
        raise Unfit("the chosen and the rejected answer are the same" if len(chosen) == len(rejected) else _CONTAINED)
    common = chosen[:shared]
    if common and prompt and common[: len(prompt)] == prompt:
        prompt = []  # it is written out once more at the head of both
    prompt, chosen, rejected = [*prompt, *common], chosen[shared:], rejected[shared:]
    if not prompt:
        raise Unfit("there is no prompt")
    for answer in (chosen, rejected):
        check_turns(answer)
        if answer[0].role is not Role.ASSISTANT:
            raise Unfit("the answers differ in what the user says")
    quiet = tuple(msgspec.structs.replace(turn, loss=False) for turn in prompt)
    return Preference(quiet, tuple(chosen), tuple(rejected))


_CONTAINED = "one of the two answers is the beginning of the other"


def _turns(value: str | list[dict[str, Any]], speaks: Any) -> list[Turn]:
    return [speaks(value)] if isinstance(value, str) else turns_of(value)


FORMAT = Format("preference", frozenset({"chosen", "rejected"}), _recognises, _read)
