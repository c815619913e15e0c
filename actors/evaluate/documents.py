"""Long texts in parts. A part is a sample: what was done is kept by samples, and errors are estimated over them."""

from __future__ import annotations

from collections.abc import Iterator

# About four thousand tokens; and few enough bytes for any engine whose model has a context of a thousand tokens.
PART_CHARACTERS = 1 << 14


def documents(text: str, limit: int = PART_CHARACTERS) -> Iterator[tuple[int, str]]:
    """(lines before it, part): parts of at most `limit` characters, cut behind a line, else behind a space, else
    anywhere. Together they are the text; a part of nothing but space is left away."""
    start = line = 0
    while start < len(text):
        end = len(text)
        if end - start > limit:
            end = start + limit
            for mark in ("\n", " "):
                if (cut := text.rfind(mark, start, end)) > start:
                    end = cut + 1
                    break
        part = text[start:end]
        if part.strip():
            yield line, part
        line += part.count("\n")
        start = end


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number, line) of each that is not blank."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line
