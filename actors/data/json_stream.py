"""The records of a JSON file one at a time, as their bytes: the file is never in memory as a whole.

Only strings, brackets and commas are looked at, so a record that is damaged inside costs that record alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

CHUNK_BYTES = 1 << 20
# A whole string; else the mark that opens one, whose end is still to be read; else structure.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|["\[\]{},]', re.DOTALL)
_SPACE = b" \t\r\n"
_CONTENT = re.compile(rb"[^ \t\r\n]")
_BOM = b"\xef\xbb\xbf"
_CUT = "the file ends inside this record, or behind it without the array's ]"


class Record(NamedTuple):
    """`json`: the record's bytes, still to be decoded; `problem`: what is wrong where there is none."""

    line: int
    json: bytes
    problem: str = ""


def json_lines(file: BinaryIO) -> Iterator[Record]:
    """A record for each line that is not blank."""
    for number, line in enumerate(file, 1):
        content = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
        if content:
            yield Record(number, content)


def json_values(file: BinaryIO) -> Iterator[Record]:
    """The elements of the array that the file is, or else the values that stand one behind the other in it."""
    return _Scanner(file).records()


class _Scanner:
    """`_buffer` is what was read and may still be needed; its byte `_at` is on line `_line` of the file.

    _buffer:   ... , {"a": [1, 2]} , {"a": ...
                    ^ _at          ^ a comma at depth 0 ends the element
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._buffer = file.read(CHUNK_BYTES).removeprefix(_BOM)
        self._at = 0
        self._line = 1

    def records(self) -> Iterator[Record]:
        self._skip_space()
        if self._next() == b"[":
            self._move_to(self._at + 1)
            yield from self._elements()
        else:
            yield from self._values()

    def _elements(self) -> Iterator[Record]:
        """The elements of an array of which the opening bracket is behind us."""
        is_first = True
        while True:
            self._skip_space()
            end = self._find_end(in_array=True)
            content = self._buffer[self._at : end].strip(_SPACE)
            closes = end is not None and self._buffer[end : end + 1] == b"]"
            if content:
                yield Record(self._line, content, "" if end is not None else _CUT)
            elif end is None:
                yield Record(self._line, b"", "the file ends without the array's ]")
            elif not (is_first and closes):
                yield Record(self._line, b"", "there is no record between two commas, or behind the last")
            if end is None:
                return
            is_first = False
            self._move_to(end + 1)
            if closes:
                break
        self._skip_space()
        if self._next():
            yield Record(self._line, b"", "something follows the end of the array")

    def _values(self) -> Iterator[Record]:
        while self._next():
            end = self._find_end(in_array=False)
            yield Record(self._line, self._buffer[self._at : end].strip(_SPACE), "" if end is not None else _CUT)
            if end is None:
                return
            self._move_to(end)
            self._skip_space()

    def _find_end(self, *, in_array: bool) -> int | None:
        """Where the value that begins here ends; reads on as needed. None: the file ends before it does."""
        depth, at = 0, self._at
        while True:
            for token in _TOKEN.finditer(self._buffer, at):
                mark = token[0]
                if mark == b'"':
                    at = token.start()
                    break
                at = token.end()
                if mark in (b"[", b"{"):
                    depth += 1
                elif mark in (b"]", b"}"):
                    if in_array and depth == 0:
                        return token.start()
                    depth -= 1
                    if not in_array and depth <= 0:
                        return token.end()
                elif mark == b"," and in_array and depth == 0:
                    return token.start()
            before = self._at
            if not self._read_on():
                return None
            at -= before

    def _skip_space(self) -> None:
        while True:
            found = _CONTENT.search(self._buffer, self._at)
            self._move_to(found.start() if found else len(self._buffer))
            if found or not self._read_on():
                return

    def _read_on(self) -> bool:
        """Reads more, and forgets what lies behind us."""
        more = self._file.read(CHUNK_BYTES)
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return bool(more)

    def _move_to(self, at: int) -> None:
        self._line += self._buffer.count(b"\n", self._at, at)
        self._at = at

    def _next(self) -> bytes:
        return self._buffer[self._at : self._at + 1]
