"""XTuner's own: `{"conversation": [{system?, input, output}]}`, a pair for each exchange.

A pair with `"output_with_loss": false` is read but not learnt.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Sample, assistant, system, user
from .format import Format, conversation, converted


class Exchange(msgspec.Struct):
    input: str
    output: str
    system: str | None = None
    output_with_loss: bool = True


class InputOutput(msgspec.Struct):
    conversation: list[Exchange]


def _recognises(record: Any) -> bool:
    pairs = record.get("conversation") if isinstance(record, dict) else None
    return isinstance(pairs, list) and all(isinstance(pair, dict) and "output" in pair for pair in pairs)


def _read(record: Any) -> Sample:
    turns = []
    for number, pair in enumerate(converted(record, InputOutput).conversation):
        if pair.system:
            if number:
                raise Unfit("a system prompt stands after the first exchange")
            turns.append(system(pair.system))
        if pair.input:
            turns.append(user(pair.input))
        turns.append(assistant(pair.output, loss=pair.output_with_loss))
    return conversation(turns)


FORMAT = Format("input-output", frozenset({"conversation"}), _recognises, _read)
