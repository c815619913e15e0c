"""How a file holds its records: JSON lines, a JSON array, CSV, Parquet, or plain text. Told from its content."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from .errors import NoSuchData, UnknownFormat
from .formats import FORMATS
from .formats.messages import is_message_list
from .json_stream import Record, json_lines, json_values
from .tables import DELIMITERS, csv_header, csv_rows, parquet_rows

# What is looked at of a file's beginning: longer lines than this are not told apart from a JSON array of one line.
LOOK_BYTES = 1 << 24
# A plain text comes in pieces of about this size, cut between paragraphs, else between lines.
PIECE_BYTES = 1 << 18

_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstandard", b"BZh": "bzip2"}


class Kind(StrEnum):
    JSON_LINES = "JSON lines"
    JSON = "JSON"
    ONE_RECORD = "JSON, one record"
    CSV = "CSV"
    PARQUET = "Parquet"
    TEXT = "plain text"


class Container(NamedTuple):
    """A file and how it is read; `delimiter` is that of a CSV file."""

    path: Path
    kind: Kind
    delimiter: str = ""

    def records(self) -> Iterator[Record]:
        """The file's records as JSON, read as they are asked for."""
        if self.kind is Kind.PARQUET:
            yield from parquet_rows(self.path)
            return
        if self.kind is Kind.CSV:
            yield from _decodable(csv_rows(self.path, self.delimiter))
            return
        with self.path.open("rb") as file:
            if self.kind is Kind.JSON_LINES:
                yield from json_lines(file)
            elif self.kind is Kind.JSON:
                yield from json_values(file)
            elif self.kind is Kind.ONE_RECORD:
                yield Record(1, file.read())
            else:
                yield from _decodable(_pieces(file))


def open_container(path: Path) -> Container:
    """Raises NoSuchData, UnknownFormat."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start == b"PAR1":
                return Container(path, Kind.PARQUET)
            for magic, name in _PACKED.items():
                if start.startswith(magic):
                    raise UnknownFormat(f"{path} is packed ({name})", hint="unpack it first")
            file.seek(0)
            kind, delimiter = _look(path, file)
    except OSError as error:
        raise NoSuchData(f"{path} cannot be read: {error.strerror}", hint="give a file, or hf:ORG/NAME") from error
    return Container(path, kind, delimiter)


def _look(path: Path, file: BinaryIO) -> tuple[Kind, str]:
    first = _next_line(file).removeprefix(codecs.BOM_UTF8)
    second = _next_line(file)
    if not first:
        raise UnknownFormat(f"{path} is empty", hint="give a file with records")
    if b"\0" in first:
        raise UnknownFormat(f"{path} is neither text nor Parquet")
    if first.startswith((b"{", b"[")):
        kind = _json_kind(file, first, second)
        if kind is not None:
            return kind, ""
    try:
        header = first.decode()
    except UnicodeDecodeError as error:
        raise UnknownFormat(f"{path} is no UTF-8 text: {error}") from error
    for delimiter in DELIMITERS:
        names = set(csv_header(header, delimiter))
        if second and any(format.fields and format.fields <= names for format in FORMATS):
            return Kind.CSV, delimiter
    return Kind.TEXT, ""


def _json_kind(file: BinaryIO, first: bytes, second: bytes) -> Kind | None:
    """None: it only begins like JSON."""
    value, is_whole = _decoded(first)
    if is_whole and isinstance(value, dict):
        return Kind.JSON_LINES
    if first.startswith(b"{"):
        inside = first[1:].lstrip()[:1] or second[:1]
        if inside not in (b'"', b"}"):
            return None
        if _first_value(file)[1]:
            return Kind.JSON  # an object over several lines
        return Kind.JSON_LINES if second.startswith(b"{") else Kind.JSON  # damaged in its first line
    if is_whole and second.startswith(b"["):
        return Kind.JSON_LINES
    inside = first[1:].lstrip()[:1] or second[:1]
    if inside not in (b"{", b"[", b"]"):
        return None
    message, decodes = _first_value(file)
    if decodes and is_message_list([message]) and "messages" not in message:
        return Kind.ONE_RECORD
    return Kind.JSON


def _first_value(file: BinaryIO) -> tuple[Any, bool]:
    """The first value of a JSON file, or the first element of its array; whether it is whole and decodes."""
    file.seek(0)
    for record in json_values(io.BytesIO(file.read(LOOK_BYTES))):
        return (None, False) if record.problem else _decoded(record.json)
    return None, False


def _decoded(content: bytes) -> tuple[Any, bool]:
    try:
        return msgspec.json.decode(content), True
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, False


def _next_line(file: BinaryIO) -> bytes:
    """The next line that is not blank, without the space around it; empty at the end."""
    while line := file.readline(LOOK_BYTES):
        if line.strip():
            return line.strip()
    return b""


def _decodable(records: Iterator[Record]) -> Iterator[Record]:
    """Until the first byte that is no UTF-8: what follows it cannot be trusted either."""
    line = 0
    try:
        for record in records:
            line = record.line
            yield record
    except UnicodeDecodeError as error:
        yield Record(line + 1, b"", f"there is no UTF-8 here or soon after: {error}")


def _pieces(file: BinaryIO) -> Iterator[Record]:
    """A plain file as one document, in pieces; each is a record of `formats.plain.PIECES`."""
    lines: list[str] = []
    size, start, number, begins = 0, 1, 0, True
    for number, raw in enumerate(file, 1):
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        full = size >= PIECE_BYTES and (not line.strip() or size >= 2 * PIECE_BYTES)
        if full:
            yield _piece(start, lines, begins=begins, ends=False)
            lines, size, start, begins = [], 0, number, False
        lines.append(line)
        size += len(raw)
    if number:
        yield _piece(start, lines, begins=begins, ends=True)


def _piece(line: int, lines: list[str], *, begins: bool, ends: bool) -> Record:
    return Record(line, msgspec.json.encode({"text": "".join(lines), "begins": begins, "ends": ends}))
