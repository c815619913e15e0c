"""The set `sql`: tools `tables` and `query`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from .....runtime.errors import ConfigError
from ...context import ToolContext
from ...errors import ToolError
from ...outcome import Reply
from ...tool import Tool
from .database import MAX_SQL, Database, Limits, Rows, Table
from .duck import Duck
from .sqlite import Sqlite

_KINDS = {"sqlite": Sqlite, "duckdb": Duck}


class SqlOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`databases`: by name, `sqlite:PATH` or `duckdb:PATH`. `writable`: the names of those that may be changed."""

    databases: dict[str, str] = {}
    writable: tuple[str, ...] = ()
    seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 15.0
    max_rows: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 1000
    max_bytes: Annotated[int, msgspec.Meta(ge=1024, le=64 << 20)] = 1 << 20


@dataclass(frozen=True)
class Schema:
    database: str
    kind: str
    tables: list[Table]


class Databases:
    """Those of the options, opened when first asked, and shared by the tools of the set."""

    def __init__(self, options: SqlOptions) -> None:
        self._options = options
        self._open: dict[str, Database] = {}

    def names(self) -> list[str]:
        if not self._options.databases:
            raise ConfigError(
                "there is no database",
                hint='`[tools.sql.databases]` of callboard.toml names them: shop = "sqlite:/srv/shop.db"',
            )
        return list(self._options.databases)

    def kind(self, name: str) -> str:
        return self._options.databases[name].partition(":")[0]

    def get(self, name: str) -> tuple[str, Database]:
        """The database of that name; the only one where the name is empty. Raises ToolError, ConfigError."""
        names = self.names()
        if not name and len(names) == 1:
            name = names[0]
        if name not in names:
            raise ToolError(f"there is no database '{name}'", hint=f"there are: {', '.join(names)}")
        if name not in self._open:
            self._open[name] = opened(self._options.databases[name], writable=name in self._options.writable)
        return name, self._open[name]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def opened(url: str, *, writable: bool = False) -> Database:
    """Raises ConfigError for what is no address of a database, and SqlError where it cannot be opened."""
    kind, _, path = url.partition(":")
    if kind not in _KINDS or not path:
        raise ConfigError(f"'{url}' names no database", hint="write sqlite:PATH or duckdb:PATH")
    # sqlite:///srv/shop.db, as other programs write it.
    plain = path[2:] if path.startswith("///") else path
    return _KINDS[kind](Path(plain).expanduser(), writable=writable)


class _OfDatabases(Tool):
    def __init__(self, options: SqlOptions, databases: Databases) -> None:
        self._settings = options
        self._databases = databases

    def close(self) -> None:
        self._databases.close()


class Tables(_OfDatabases, name="tables", read_only=True, idempotent=True, open_world=False, version="1"):
    def run(self, database: str = "") -> list[Schema]:
        """List the databases with their tables, columns and types.

        Args:
            database: Only this one. Empty: all of them.
        """
        options = self._settings
        limits = Limits(2000, 4 << 20, options.seconds)
        names = [database] if database else self._databases.names()
        found: list[Schema] = []
        for each in names:
            name, opened_one = self._databases.get(each)
            found.append(Schema(name, self._databases.kind(name), opened_one.tables(limits)))
        return Reply(found, "\n\n".join(map(_schema_text, found)))  # pyright: ignore[reportReturnType]


class Query(_OfDatabases, name="query", open_world=False, version="1"):
    def run(
        self,
        context: ToolContext,
        sql: Annotated[str, msgspec.Meta(max_length=MAX_SQL)],
        database: str = "",
        parameters: list[Any] | None = None,
        limit: Annotated[int, msgspec.Meta(ge=1)] = 100,
    ) -> Rows:
        """Ask a database with one SQL statement. `tables` shows what is there.

        Args:
            sql: The statement, with ? where a value of `parameters` goes.
            database: Which one, where there are several.
            parameters: Values for the ? in the statement. Never write a user's text into the statement itself.
            limit: The most rows to give back.
        """
        options = self._settings
        limits = Limits(min(limit, options.max_rows), options.max_bytes, options.seconds)
        _, opened_one = self._databases.get(database)
        rows = opened_one.query(sql, parameters or [], limits, lambda: context.cancelled)
        return Reply(rows, table_text(rows))  # pyright: ignore[reportReturnType]


def _schema_text(schema: Schema) -> str:
    lines = [f"database {schema.database} ({schema.kind})"]
    for table in schema.tables:
        columns = ", ".join(
            f"{column.name} {column.type}{' PRIMARY KEY' if column.primary_key else ''}" for column in table.columns
        )
        lines.append(f"{table.kind} {table.name}({columns})")
    return "\n".join(lines)


def table_text(rows: Rows) -> str:
    """Rows as a table in Markdown."""
    if not rows.columns:
        return "done"
    lines = [_line(rows.columns), _line(["---"] * len(rows.columns)), *(_line(row) for row in rows.rows)]
    count = f"{len(rows.rows)} row{'' if len(rows.rows) == 1 else 's'}"
    return "\n".join([*lines, f"({count})" if rows.complete else f"(the first {count}; there are more)"])


def _line(values: list[Any]) -> str:
    cells = ("" if value is None else str(value).replace("|", "\\|").replace("\n", " ") for value in values)
    return f"| {' | '.join(cells)} |"


def tools(options: SqlOptions) -> list[Tool]:
    """The set, over the databases of its options."""
    databases = Databases(options)
    reads_only = not options.writable
    query = Query(options, databases).named(read_only=reads_only, idempotent=reads_only)
    return [Tables(options, databases), query]
