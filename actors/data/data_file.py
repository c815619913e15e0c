"""A file of training data: its records as samples, one at a time, and what is wrong with those that are none."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from .containers import Container, Kind, open_container
from .errors import BadRecord, Unfit, UnknownFormat
from .formats import FORMATS, described, detect
from .formats.format import Format
from .formats.plain import PIECES
from .json_stream import Record
from .samples import Sample

# So many records tell a file's format.
LOOK_RECORDS = 64


class Problem(NamedTuple):
    """Why one record of a file cannot be used."""

    line: int
    reason: str


class DataFile(NamedTuple):
    container: Container
    format: Format

    @property
    def path(self) -> Path:
        return self.container.path

    def records(self) -> Iterator[Record]:
        return self.container.records()

    def samples(self) -> Iterator[tuple[int, Sample | Problem]]:
        """(line, what is there), read as it is asked for."""
        for record in self.records():
            yield record.line, read_record(record, self.format)


def open_data(path: Path) -> DataFile:
    """Find out what a file is. Raises NoSuchData, UnknownFormat."""
    container = open_container(path)
    if container.kind is Kind.TEXT:
        return DataFile(container, PIECES)
    values = [value for record in islice(container.records(), LOOK_RECORDS) if (value := _value(record)) is not None]
    if not values:
        raise UnknownFormat(f"{path}: none of its first records is JSON, as the rest of it would have it")
    try:
        return DataFile(container, detect(values))
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}: {error}", hint=error.hint) from error


def read_record(record: Record, format: Format) -> Sample | Problem:
    if record.problem:
        return Problem(record.line, record.problem)
    try:
        value = msgspec.json.decode(record.json)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Problem(record.line, f"it is no JSON: {error}")
    has_fields = isinstance(value, dict) and format.fields <= value.keys()
    if not (has_fields or format.recognises(value)):
        others = [other.name for other in FORMATS if other.recognises(value)]
        found = f"it is of the format {others[0]}" if others else f"it fits no format: {described(value)}"
        return Problem(record.line, f"{found} (the file's is {format.name})")
    try:
        return format.read(value)
    except Unfit as unfit:
        return Problem(record.line, str(unfit))


def bad_record(path: Path, problem: Problem) -> BadRecord:
    return BadRecord(f"{path}:{problem.line}: {problem.reason}")


def _value(record: Record) -> object:
    try:
        return None if record.problem else msgspec.json.decode(record.json)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
