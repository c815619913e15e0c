"""DuckDB, which touches nothing but its own file, in a process that can be ended.

`enable_external_access` off takes COPY, ATTACH, INSTALL, LOAD and every function that reads files or the network;
`lock_configuration` keeps a statement from turning that on again. Beside it only statements that read are let through,
since a read-only DuckDB still makes temporary tables.

A statement runs in a process of its own: within one large value DuckDB looks neither at an interrupt nor at its memory
limit (`repeat('x', 1000000000)` goes on for minutes), and a process has limits that hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from .database import Column, Limits, Parameters, Rows, SqlError, SqlRefused, Table, checked_sql, too_long
from .duck_process import Said, Statement

_PROCESS = "duck_process"
_START_S = 20.0
_LOOK_EVERY_S = 0.1
_KEPT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")


class Duck:
    def __init__(self, path: Path, *, writable: bool = False) -> None:
        if not path.is_file():
            raise SqlError(f"there is no database {path}")
        self._path = str(path.absolute())
        self._writable = writable
        # What is no database is said when it is opened, not at the first question.
        self.query("SELECT 1", [], Limits(), lambda: False)

    def close(self) -> None:
        """Nothing is open between statements."""

    def query(self, sql: str, parameters: Parameters, limits: Limits, given_up: Callable[[], bool]) -> Rows:
        statement = Statement(
            self._path, self._writable, checked_sql(sql), parameters, limits.rows, limits.max_bytes, limits.seconds
        )
        said = _run(statement, given_up)
        if said.refused:
            raise SqlRefused(said.error, hint="write a SELECT over the tables that are there")
        if said.error:
            raise SqlError(said.error, hint=said.hint)
        return Rows(said.columns, said.rows, said.complete)

    def tables(self, limits: Limits) -> list[Table]:
        found = self.query(_TABLES, (), Limits(100_000, limits.max_bytes, limits.seconds), lambda: False)
        tables: dict[tuple[str, str], Table] = {}
        for schema, name, kind, column, of, nullable in found.rows:
            shown = name if schema == "main" else f"{schema}.{name}"
            table = tables.setdefault((schema, name), Table(shown, "view" if "VIEW" in kind else "table", []))
            table.columns.append(Column(column, of, bool(nullable)))
        return list(tables.values())


_TABLES = """
SELECT t.table_schema, t.table_name, t.table_type, c.column_name, c.data_type, c.is_nullable = 'YES'
FROM information_schema.tables t JOIN information_schema.columns c USING (table_catalog, table_schema, table_name)
WHERE t.table_catalog = current_database() ORDER BY 1, 2, c.ordinal_position
"""


def _run(statement: Statement, given_up: Callable[[], bool]) -> Said:
    """Raises SqlError where the process did not answer: it was ended, or ended itself for want of memory."""
    module = f"{__name__.rpartition('.')[0]}.{_PROCESS}"
    environment = {name: value for name, value in os.environ.items() if name in _KEPT}
    with subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        end = time.monotonic() + statement.seconds + _START_S
        given: bytes | None = msgspec.json.encode(statement)
        while True:
            try:
                out, err = process.communicate(given, timeout=_LOOK_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                given = None
                if given_up() or time.monotonic() > end:
                    process.kill()
    return _said(process.returncode, out, err, statement.seconds)


def _said(code: int, out: bytes, err: bytes, seconds: float) -> Said:
    try:
        return msgspec.json.decode(out, type=Said)
    except msgspec.DecodeError as error:
        if code < 0:
            raise too_long(seconds) from error
        last: Any = err.decode(errors="replace").strip().splitlines()[-1:]
        raise SqlError(
            f"the database's process ended: {last[0] if last else f'status {code}'}",
            hint="the query may need more memory than it may have: ask for less at once",
        ) from error
