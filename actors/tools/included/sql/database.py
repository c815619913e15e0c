"""What the tools know of a database: its tables, and how to ask it something within bounds."""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import ToolError

Parameters = Sequence[Any] | Mapping[str, Any]


class SqlError(ToolError):
    """The database does not take the statement, or not all of the bounds."""

    code = "tool.sql"


class SqlRefused(SqlError):
    """The statement would do what this tool is not to do."""

    code = "tool.sql_refused"


@dataclass(frozen=True, slots=True)
class Limits:
    rows: int = 200
    max_bytes: int = 1 << 20
    seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Rows:
    """`complete`: whether the query had no more rows than these."""

    columns: list[str]
    rows: list[list[Any]]
    complete: bool


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str
    nullable: bool
    primary_key: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    kind: str
    columns: list[Column]
    num_rows: int | None = None


class Database(Protocol):
    """One call at a time in a thread. Raises SqlError."""

    def query(self, sql: str, parameters: Parameters, limits: Limits, given_up: Callable[[], bool]) -> Rows: ...
    def tables(self, limits: Limits) -> list[Table]: ...
    def close(self) -> None: ...


class Interrupter:
    """Interrupts a statement from a thread of its own when its time is up or nobody waits for it any more."""

    def __init__(self, interrupt: Callable[[], None], seconds: float, given_up: Callable[[], bool]) -> None:
        self._interrupt = interrupt
        self._seconds = seconds
        self._given_up = given_up
        self._done = threading.Event()
        self.fired = False

    @contextmanager
    def watching(self) -> Iterator[Interrupter]:
        thread = threading.Thread(target=self._watch, name="sql-interrupter", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._done.set()
            thread.join()

    def _watch(self) -> None:
        left = self._seconds
        while left > 0 and not self._given_up():
            if self._done.wait(min(left, _LOOK_EVERY_S)):
                return
            left -= _LOOK_EVERY_S
        self.fired = True
        # A statement that has not begun yet is not interrupted: it is asked again until it is over.
        while not self._done.wait(_AGAIN_AFTER_S):
            self._interrupt()

    def failure(self, error: Exception) -> SqlError:
        if self.fired:
            return too_long(self._seconds)
        return SqlError(f"the database does not take the statement: {error}", hint="`tables` shows what is there")


def too_long(seconds: float) -> SqlError:
    return SqlError(
        f"the query takes longer than {seconds:g} s and was ended",
        hint="narrow it with WHERE, aggregate, or put a LIMIT into a subquery",
    )


_LOOK_EVERY_S = 0.2
_AGAIN_AFTER_S = 0.01


def collected(columns: list[str], fetch: Callable[[], Sequence[Any] | None], limits: Limits) -> Rows:
    """Rows until there are no more, or a bound is met."""
    rows: list[list[Any]] = []
    room = limits.max_bytes
    while (row := fetch()) is not None:
        if len(rows) == limits.rows:
            return Rows(columns, rows, False)
        values = [as_json(value) for value in row]
        room -= sum(len(value) if isinstance(value, str) else 8 for value in values)
        if room < 0:
            if not rows:
                raise SqlError(
                    f"a single row is larger than {limits.max_bytes:,} bytes", hint="ask for fewer columns, or substr()"
                )
            return Rows(columns, rows, False)
        rows.append(values)
    return Rows(columns, rows, True)


def as_json(value: Any) -> Any:
    """A value of a database as JSON has it. What JSON has no form for is a string, bytes base64 in one."""
    match value:
        case None | bool() | str():
            return value
        case int():
            # Beyond, programs that read JSON numbers as floats would change it.
            return value if -(2**53) <= value <= 2**53 else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case bytes() | bytearray() | memoryview():
            return "base64:" + base64.b64encode(bytes(value)).decode()
        case decimal.Decimal() | uuid.UUID():
            return str(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case datetime.timedelta():
            return str(value)
        case dict():
            return {str(key): as_json(each) for key, each in value.items()}
        case list() | tuple() | set():
            return [as_json(each) for each in value]
    return str(value)


def checked_sql(sql: str) -> str:
    if len(sql) > MAX_SQL:
        raise SqlError(f"the statement is longer than {MAX_SQL:,} characters")
    if "\0" in sql:
        raise SqlError("a statement has no NUL characters")
    if not sql.strip().strip(";").strip():
        raise SqlError("the statement is empty")
    return sql


MAX_SQL = 50_000
