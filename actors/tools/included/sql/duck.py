"""DuckDB, which touches nothing but its own file, in a process that can be ended.

`enable_external_access` off takes COPY, ATTACH, INSTALL, LOAD and every function that reads files or the network;
`lock_configuration` keeps a statement from turning that on again. Beside it only statements that read are let through,
since a read-only DuckDB still makes temporary tables.

Statements run in a process of their own, which opens the database for each of them: within one large value DuckDB looks
neither at an interrupt nor at its memory limit (`repeat('x', 1000000000)` goes on for minutes), and a process has
limits that hold.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from .database import Column, Limits, Parameters, Rows, SqlError, SqlRefused, Table, checked_sql, too_long
from .duck_process import Said, Statement

_START_S = 20.0
_LOOK_EVERY_S = 0.1
_KEPT = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")


class Duck:
    def __init__(self, path: Path, *, writable: bool = False) -> None:
        if not path.is_file():
            raise SqlError(f"there is no database {path}")
        self._path = str(path.absolute())
        self._writable = writable
        self._process = _Process()
        # What is no database is said when it is opened, not at the first question.
        try:
            self.query("SELECT 1", [], Limits(), lambda: False)
        except SqlError:
            self.close()
            raise

    def close(self) -> None:
        self._process.close()

    def query(self, sql: str, parameters: Parameters, limits: Limits, given_up: Callable[[], bool]) -> Rows:
        statement = Statement(
            self._path, self._writable, checked_sql(sql), parameters, limits.rows, limits.max_bytes, limits.seconds
        )
        said = self._process.ask(statement, given_up)
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


class _Process:
    """The process that statements run in, one after another. It is started when needed, also after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        with self._lock:
            self._end()

    def ask(self, statement: Statement, given_up: Callable[[], bool]) -> Said:
        """Raises SqlError where there is no answer: the process was ended, or ended itself for want of memory."""
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(msgspec.json.encode(statement) + b"\n")
                process.stdin.flush()
                line = self._line(process, time.monotonic() + statement.seconds + _START_S, given_up)
                return msgspec.json.decode(line, type=Said)
            except (OSError, msgspec.DecodeError) as error:
                raise self._failure(statement.seconds) from error
            except _NoAnswer as error:
                self._end()
                raise too_long(statement.seconds) from error

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            module = f"{__name__.rpartition('.')[0]}.duck_process"
            environment = {name: value for name, value in os.environ.items() if name in _KEPT}
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], end: float, given_up: Callable[[], bool]) -> bytes:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        pieces: list[bytes] = []
        while not (pieces and pieces[-1].endswith(b"\n")):
            if given_up() or time.monotonic() > end:
                raise _NoAnswer
            if select.select([descriptor], [], [], _LOOK_EVERY_S)[0]:
                piece = os.read(descriptor, 1 << 20)
                if not piece:
                    break
                pieces.append(piece)
        return b"".join(pieces)

    def _failure(self, seconds: float) -> SqlError:
        process = self._process
        code = process.wait() if process is not None else 0
        self._end()
        if code == -signal.SIGALRM:
            return too_long(seconds)
        return SqlError(
            f"the database's process ended with status {code}",
            hint="the query may need more memory than it may have: ask for less at once",
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


class _NoAnswer(Exception):
    """The time is up, or nobody waits."""
