"""Records from tables, CSV and Parquet: each row is an object of its columns."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.errors import MissingExtra
from .errors import UnknownFormat
from .json_stream import Record

ROWS_AT_ONCE = 1024
DELIMITERS = (",", "\t", ";")


def csv_header(line: str, delimiter: str) -> list[str]:
    csv.field_size_limit(sys.maxsize)  # a cell may be a whole article
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def csv_rows(path: Path, delimiter: str) -> Iterator[Record]:
    """A row may go over several lines; it is named by the first."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        names = [name.strip() for name in next(reader)]
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Record(line, b"", f"the table is damaged: {error}")
                continue
            if row:
                yield _row(line, row, names)


def _row(line: int, row: list[str], names: list[str]) -> Record:
    if len(row) != len(names):
        return Record(line, b"", f"the row has {len(row)} cells under {len(names)} columns")
    return Record(line, msgspec.json.encode({name: _cell(cell) for name, cell in zip(names, row, strict=True)}))


def _cell(cell: str) -> Any:
    """A cell that holds a list of objects (messages, say) is what it spells in JSON."""
    if cell.startswith(("[{", '{"')):
        try:
            return msgspec.Raw(_checked(cell))
        except msgspec.DecodeError:
            return cell
    return cell


def _checked(cell: str) -> bytes:
    content = cell.encode()
    msgspec.json.decode(content)
    return content


def parquet_rows(path: Path) -> Iterator[Record]:
    """The rows of a Parquet file, which are counted from 1. Needs pyarrow."""
    try:
        from pyarrow import ArrowException  # pyright: ignore[reportMissingImports]
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra.of("parquet", f"{path} is a Parquet file: reading it") from error
    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(number, msgspec.json.encode({k: v for k, v in row.items() if v is not None}))
    except ArrowException as error:
        raise UnknownFormat(f"{path} is a damaged Parquet file: {error}", hint="fetch it again") from error
