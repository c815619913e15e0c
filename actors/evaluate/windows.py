"""A text that is longer than a model's context, in windows that overlap by half."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """The tokens `begin` to `end` - 1 are computed; those from `first` on are scored."""

    begin: int
    end: int
    first: int


def windows(num_tokens: int, size: int, first: int = 1) -> Iterator[Window]:
    """Each token from `first` on is scored once, and behind the first window after about half a window.

    0 1 2 3 4 5 6 7            scored: 1 to 7
            4 5 6 7 8 9 a b            8 to b
    """
    begin = 0
    while first < num_tokens:
        end = min(begin + size, num_tokens)
        yield Window(begin, end, first)
        first = end
        begin += max(1, size // 2)
