"""SQLite, opened so that the database itself refuses what is not to be done.

Read-only three times over: the file is opened with mode=ro, `query_only` is set, and an authorizer says no to every
action that is not reading. The authorizer also keeps ATTACH from opening other files, in both modes.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .database import Column, Interrupter, Limits, Parameters, Rows, SqlError, SqlRefused, Table, checked_sql, collected

_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
# Those that load code, or reach beyond the database.
_REFUSED_FUNCTIONS = {"load_extension", "fts3_tokenizer", "readfile", "writefile", "edit", "zipfile", "fsdir"}
_READING_PRAGMAS = {
    *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"),
    *("database_list", "collation_list", "function_list", "schema_version", "user_version", "page_count", "page_size"),
    *("encoding", "application_id", "compile_options", "foreign_key_check", "integrity_check", "quick_check"),
}
# Of the pragmas above, what a value sets.
_SET_BY_VALUE = {"user_version", "application_id", "schema_version", "encoding", "page_size"}
_NEVER = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH}
_MAX_VALUE_BYTES = 8 << 20
_HEAP_BYTES = 512 << 20
_BUSY_S = 5.0


class Sqlite:
    def __init__(self, path: Path, *, writable: bool = False) -> None:
        if not path.is_file():
            raise SqlError(f"there is no database {path}")
        mode = "rw" if writable else "ro"
        uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
        try:
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._prepare(writable)
        except sqlite3.Error as error:
            raise SqlError(f"{path} cannot be opened: {error}") from error
        self._lock = threading.Lock()

    def _prepare(self, writable: bool) -> None:
        connection = self._connection
        connection.execute("PRAGMA trusted_schema = OFF")
        # What a query sorts stays in memory, which has a bound (for all of SQLite in this process), and off the disk.
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA hard_heap_limit = {_HEAP_BYTES}")
        connection.execute("PRAGMA cell_size_check = ON")
        if not writable:
            connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200)
        connection.setlimit(sqlite3.SQLITE_LIMIT_COMPOUND_SELECT, 100)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000)
        connection.setlimit(sqlite3.SQLITE_LIMIT_WORKER_THREADS, 0)
        self._writable = writable
        self._refused = ""
        connection.set_authorizer(self._authorize)

    def close(self) -> None:
        self._connection.close()

    def query(self, sql: str, parameters: Parameters, limits: Limits, given_up: Callable[[], bool]) -> Rows:
        with self._lock:
            self._refused = ""
            interrupter = Interrupter(self._connection.interrupt, limits.seconds, given_up)
            try:
                with interrupter.watching():
                    cursor = self._connection.execute(checked_sql(sql), parameters)
                    try:
                        if cursor.description is None and not self._writable:
                            raise SqlError("the statement gives no rows", hint="write a SELECT")
                        columns = [entry[0] for entry in cursor.description or ()]
                        return collected(columns, cursor.fetchone, limits)
                    finally:
                        cursor.close()
            except (sqlite3.Error, sqlite3.Warning, OverflowError, ValueError) as error:
                raise self._failure(error, interrupter) from error
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _failure(self, error: Exception, interrupter: Interrupter) -> SqlError:
        if self._refused:
            return SqlRefused(f"{self._refused} is not allowed here", hint="write a SELECT that only reads")
        if "readonly" in str(error) or "query_only" in str(error):
            return SqlRefused("the database is read-only", hint="write a SELECT that only reads")
        if "one statement at a time" in str(error):
            return SqlError("only one statement at a time", hint="send the others one by one")
        return interrupter.failure(error)

    def tables(self, limits: Limits) -> list[Table]:
        found = self.query(
            "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' "
            "ESCAPE '\\' ORDER BY name",
            (),
            limits,
            lambda: False,
        )
        return [Table(name, kind, self._columns(name, limits)) for name, kind in found.rows]

    def _columns(self, table: str, limits: Limits) -> list[Column]:
        quoted = '"' + table.replace('"', '""') + '"'
        found = self.query(f"PRAGMA table_xinfo({quoted})", (), limits, lambda: False)
        return [Column(row[1], row[2], not row[3], bool(row[5])) for row in found.rows if row[6] != 1]

    def _authorize(self, action: int, one: Any, two: Any, database: Any, trigger: Any) -> int:
        if self._may(action, one, two):
            return sqlite3.SQLITE_OK
        self._refused = self._refused or _NAMES.get(action, "this statement")
        return sqlite3.SQLITE_DENY

    def _may(self, action: int, one: Any, two: Any) -> bool:
        if action in _READS:
            return True
        if action == sqlite3.SQLITE_FUNCTION:
            return str(two).lower() not in _REFUSED_FUNCTIONS
        if action == sqlite3.SQLITE_PRAGMA:
            name = str(one).lower()
            return name in _READING_PRAGMAS and not (two is not None and name in _SET_BY_VALUE)
        if action in _NEVER:
            return False
        # The end of a statement that was cut short.
        if action == sqlite3.SQLITE_TRANSACTION and one == "ROLLBACK":
            return True
        return self._writable


_NAMES = {
    getattr(sqlite3, f"SQLITE_{name}"): name.replace("_", " ")
    for name in (
        *("ATTACH", "DETACH", "INSERT", "UPDATE", "DELETE", "CREATE_TABLE", "DROP_TABLE", "ALTER_TABLE", "PRAGMA"),
        *("CREATE_INDEX", "CREATE_VIEW", "CREATE_TRIGGER", "CREATE_TEMP_TABLE", "CREATE_TEMP_VIEW", "DROP_INDEX"),
        *("CREATE_TEMP_TRIGGER", "CREATE_VTABLE", "DROP_VTABLE", "DROP_VIEW", "TRANSACTION", "SAVEPOINT", "REINDEX"),
        *("ANALYZE", "FUNCTION"),
    )
}
