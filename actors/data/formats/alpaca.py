"""Alpaca: `{instruction, input, output}`, and the Chinese data sets' `{instruction_zh, input_zh, output_zh}`.

`input`, where there is one, follows the instruction on a line of its own. LLaMA-Factory's additions `system` and
`history` (pairs of earlier questions and answers) are read too.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Sample, assistant, system, user
from .format import Format, conversation, converted

# How data sets of this kind say that a field is empty.
_NO_INPUT, _NO_OUTPUT = "<noinput>", "<nooutput>"


class Alpaca(msgspec.Struct):
    instruction: str
    output: str
    input: str | None = None
    system: str | None = None
    history: list[tuple[str, str]] | None = None


class ChineseAlpaca(msgspec.Struct):
    instruction_zh: str
    output_zh: str
    input_zh: str | None = None


def _read(record: Any) -> Sample:
    return _sample(converted(record, Alpaca))


def _read_chinese(record: Any) -> Sample:
    found = converted(record, ChineseAlpaca)
    return _sample(Alpaca(found.instruction_zh, found.output_zh, found.input_zh))


def _sample(record: Alpaca) -> Sample:
    if record.output.strip() == _NO_OUTPUT:
        raise Unfit(f"the output is {_NO_OUTPUT}")
    extra = record.input if record.input and record.input.strip() not in ("", _NO_INPUT) else ""
    question = "\n".join(part for part in (record.instruction, extra) if part)
    if not question.strip():
        raise Unfit("the instruction is empty")
    turns = [system(record.system)] if record.system else []
    for asked, answered in record.history or ():
        turns += [user(asked), assistant(answered)]
    return conversation([*turns, user(question), assistant(record.output)])


def _has(*keys: str) -> Any:
    return lambda record: isinstance(record, dict) and all(key in record for key in keys)


FORMAT = Format("alpaca", frozenset({"instruction", "output"}), _has("instruction", "output"), _read)
CHINESE = Format(
    "alpaca-zh", frozenset({"instruction_zh", "output_zh"}), _has("instruction_zh", "output_zh"), _read_chinese
)
