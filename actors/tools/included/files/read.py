"""Read a file: text by lines, anything else as the medium it is."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ...errors import ToolError
from ...values import Audio, File, Image, kind_of, sniffed_mime
from .roots import Roots
from .text import encoding_of

MAX_FILE_BYTES = 64 << 20
MAX_TEXT_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class TextPart:
    """Lines of a text, numbered from 1; `more` where there are lines after them."""

    text: str
    first_line: int
    last_line: int
    num_lines: int
    more: bool


def read(roots: Roots, path: str, first_line: int, num_lines: int, max_chars: int) -> TextPart | File:
    """Raises FileRefused, and ToolError where the file is too large."""
    descriptor = roots.open(path)
    with os.fdopen(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        if size > MAX_FILE_BYTES:
            raise ToolError(
                f"'{path}' has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read", hint="search finds lines in it"
            )
        data = file.read(MAX_FILE_BYTES)
    mime = sniffed_mime(data[:16])
    encoding = None if mime else encoding_of(data)
    if encoding is None or len(data) > MAX_TEXT_BYTES:
        return medium(data, mime, os.path.basename(path))
    return part(data.decode(encoding, "replace"), first_line, num_lines, max_chars)


def medium(data: bytes, mime: str, name: str) -> File:
    """Bytes as the kind of medium that they are."""
    kinds = {"image": Image, "audio": Audio}
    kind = kinds.get(kind_of(mime).value, File) if mime else File
    return kind.from_bytes(data, mime, name)


def part(text: str, first_line: int, num_lines: int, max_chars: int) -> TextPart:
    """Some lines of a text: as many whole ones as fit, and a piece of the first where not even that does."""
    lines = text.splitlines()
    if first_line > max(len(lines), 1):
        raise ToolError(f"the file has {len(lines)} lines", hint="ask for an earlier one")
    chosen: list[str] = []
    room = max_chars
    for line in lines[first_line - 1 : first_line - 1 + num_lines]:
        if len(line) + 1 > room:
            if not chosen:
                chosen.append(line[:max_chars] + "… (the line goes on)")
            break
        chosen.append(line)
        room -= len(line) + 1
    last = first_line + len(chosen) - 1
    return TextPart("\n".join(chosen), first_line, last, len(lines), last < len(lines))
