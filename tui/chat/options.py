"""The options of a conversation as people write them: in the panel, and with `/set`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import UsageError
from ...runtime.matching import did_you_mean
from .conversation import Options


class OptionInvalid(UsageError):
    """A value that an option cannot have."""

    code = "tui.option"


@dataclass(frozen=True)
class Field:
    """`empty` is what an empty field means, where it may be empty."""

    title: str
    read: Callable[[str], Any]
    fits: Callable[[Any], bool]
    says: str
    empty: str = ""
    when_empty: Any = None


def _whole(text: str) -> int:
    return int(text)


def _strings(text: str) -> tuple[str, ...]:
    return tuple(part.strip().replace("\\n", "\n") for part in text.split("|") if part.strip())


FIELDS: dict[str, Field] = {
    "temperature": Field("temperature", float, lambda v: 0 <= v <= 10, "a number from 0 (the likeliest token)"),
    "top_p": Field("top p", float, lambda v: 0 < v <= 1, "a number above 0, up to 1 (all)"),
    "top_k": Field("top k", _whole, lambda v: v >= 0, "a whole number; 0: all"),
    "min_p": Field("min p", float, lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "repetition_penalty": Field("repetition", float, lambda v: v > 0, "a number above 0; 1: none"),
    "max_tokens": Field("max tokens", _whole, lambda v: v > 0, "a whole number", "the engine's"),
    "seed": Field("seed", _whole, lambda v: v >= 0, "a whole number", "a new one"),
    "stop": Field("stop at", _strings, lambda v: True, "texts with | between them", "nothing", ()),
    "system": Field("system", str, lambda v: True, "what the model is told to be", "nothing", ""),
}


def read_option(name: str, text: str) -> Any:
    """The value of an option. Raises OptionInvalid, which says what it may be."""
    field = FIELDS.get(name)
    if field is None:
        guess = did_you_mean(name, FIELDS)
        raise OptionInvalid(
            f"there is no option '{name}'", hint=f"did you mean {guess}?" if guess else ", ".join(FIELDS)
        )
    if not text.strip() and field.empty:
        return field.when_empty
    try:
        value = field.read(text.strip())
    except ValueError:
        value = None
    if value is None or value != value or not field.fits(value):
        raise OptionInvalid(f"{field.title} is {field.says}, not '{text}'")
    return value


def written(options: Options, name: str) -> str:
    """The value of an option as one would type it."""
    value = getattr(options, name)
    if value is None:
        return ""
    return "|".join(part.replace("\n", "\\n") for part in value) if isinstance(value, tuple) else str(value)
