"""The formats of training data, each in a file of its own, and how a file's format is told from its records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UnknownFormat
from . import alpaca, guanaco, input_output, messages, moss, msagent, plain, preference, sharegpt
from .format import Format

# In the order of precedence: a record may have the keys of several, and the more telling format comes first.
FORMATS: tuple[Format, ...] = (
    preference.FORMAT,
    messages.FORMAT,
    moss.FORMAT,
    sharegpt.FORMAT,
    msagent.FORMAT,
    input_output.FORMAT,
    alpaca.CHINESE,
    alpaca.FORMAT,
    guanaco.FORMAT,
    plain.FORMAT,
)
BY_NAME = {format.name: format for format in (*FORMATS, plain.PIECES)}


def detect(records: Sequence[Any]) -> Format:
    """The format that most of a file's first records have. Raises UnknownFormat where none has any."""
    counts = {format.name: sum(map(format.recognises, records)) for format in FORMATS}
    best = max(FORMATS, key=lambda format: counts[format.name])  # of equals the first
    if not counts[best.name]:
        raise UnknownFormat(f"its records fit no format: the first is {described(records[0])}")
    return best


def described(record: Any) -> str:
    """A record in a few words, for an error."""
    if isinstance(record, dict):
        keys = ", ".join(map(str, list(record)[:8])) or "none"
        return f"an object with the keys {keys}" + (", ..." if len(record) > 8 else "")
    if isinstance(record, list):
        return f"a list of {len(record)}"
    return {str: "a string", bool: "a truth value", type(None): "null"}.get(type(record), "a number")
