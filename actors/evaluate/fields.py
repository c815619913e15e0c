"""Fields of a record, of the type that they must have. Raises Unfit with the reason alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.errors import Unfit

Value = Mapping[str, Any]


def text(value: Value, name: str) -> str:
    found = value.get(name)
    if not isinstance(found, str) or not found.strip():
        raise Unfit(f"'{name}' is missing or no text")
    return found


def texts(value: Value, name: str) -> tuple[str, ...]:
    return as_texts(value.get(name), name)


def as_texts(found: object, name: str) -> tuple[str, ...]:
    """A list of at least two texts, none of them empty."""
    if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found):
        raise Unfit(f"'{name}' is no list of texts")
    if len(found) < 2:
        raise Unfit(f"'{name}' has {len(found)} entries, and a choice is between two or more")
    return tuple(found)


def place(found: object, name: str, count: int, first: int = 0) -> int:
    """The place, from 0, that a number (or its digits) names of `count` counted from `first`."""
    if isinstance(found, str) and found.strip().isdecimal():
        found = int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        raise Unfit(f"'{name}' is {_shown(found)}, and should be a number from {first} to {first + count - 1}")
    if not first <= found < first + count:
        raise Unfit(f"'{name}' is {found}, out of range: it should be {first} to {first + count - 1}")
    return found - first


def place_of(found: object, name: str, labels: tuple[str, ...]) -> int:
    """The place of a label among `labels`."""
    label = str(found).strip() if isinstance(found, str | int) and not isinstance(found, bool) else None
    if label is None or label not in labels:
        raise Unfit(f"'{name}' is {_shown(found)}, out of range: the choices are {', '.join(labels)}")
    return labels.index(label)


def letters(count: int) -> tuple[str, ...]:
    if count > 26:
        raise Unfit(f"there are {count} choices, more than letters")
    return tuple(chr(ord("A") + number) for number in range(count))


def _shown(found: object) -> str:
    return "missing" if found is None else repr(found)
