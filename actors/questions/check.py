"""Whether a question can be answered, and an answer is what its JSON Schema asks for."""

from __future__ import annotations

import json
from typing import Any

from ...runtime.errors import MissingExtra
from ...runtime.foreign_schema import BadSchema, BadValue, ForeignSchema
from .errors import AnswerInvalid, QuestionInvalid

# Of each text of a question and of an answer. What is larger is a blob's business.
MAX_BYTES = 64 << 10


def check_question(schema: str, proposal: str, **texts: str) -> None:
    """Raises QuestionInvalid for a schema that cannot be used, a proposal that does not fit it, or too much text."""
    for name, text in texts.items():
        if len(text.encode()) > MAX_BYTES:
            raise QuestionInvalid(f"the question's {name} is over {MAX_BYTES} bytes")
    _schema(schema)
    if proposal:
        try:
            check_answer(schema, proposal)
        except AnswerInvalid as error:
            raise QuestionInvalid(f"the proposal does not fit the question's schema: {error}") from error


def check_answer(schema: str, value: str) -> None:
    """Raises AnswerInvalid, naming the path of the first thing that is wrong."""
    if len(value.encode()) > MAX_BYTES:
        raise AnswerInvalid(f"the answer is over {MAX_BYTES} bytes")
    try:
        found: Any = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise AnswerInvalid(f"the answer is not JSON: {error}") from None
    try:
        _schema(schema).check(found)
    except (BadSchema, BadValue) as error:
        raise AnswerInvalid(str(error)) from None


def _schema(schema: str) -> ForeignSchema:
    try:
        return ForeignSchema(schema, max_bytes=MAX_BYTES)
    except BadSchema as error:
        raise QuestionInvalid(f"the question's schema cannot be used: {error}") from None
    except ImportError:
        raise MissingExtra.of("tools", "holding an answer against a schema") from None
