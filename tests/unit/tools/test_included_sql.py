"""SQL over SQLite and DuckDB: what can be asked, and every write and every way out refused by the database itself."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import duckdb
import pytest

from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.included.sql.database import Database, Limits, SqlError
from callboard.actors.tools.included.sql.tools import SqlOptions, opened, tools
from callboard.actors.tools.outcome import Outcome
from callboard.runtime.errors import ConfigError

NEVER: Callable[[], bool] = lambda: False  # noqa: E731
SCRIPT = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, total DECIMAL(10, 2), day DATE);
INSERT INTO orders VALUES (1, 'Ada', 12.5, '2026-01-02'), (2, 'Bob', 7.25, '2026-01-03'), (3, 'Ada', 1, NULL);
CREATE VIEW sums AS SELECT customer, sum(total) AS sum FROM orders GROUP BY customer;
"""


@pytest.fixture(params=["sqlite", "duckdb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    path = tmp_path / f"shop.{request.param}"
    if request.param == "sqlite":
        connection = sqlite3.connect(path)
        connection.executescript(SCRIPT)
    else:
        connection = duckdb.connect(str(path))
        connection.execute(SCRIPT)
    connection.close()
    return f"{request.param}:{path}"


def called(
    url: str, name: str, writable: bool = False, options: dict[str, Any] | None = None, **arguments: Any
) -> Outcome:
    async def main() -> Outcome:
        given = SqlOptions({"shop": url}, ("shop",) if writable else (), **(options or {}))
        tool = next(tool for tool in tools(given) if tool.info.name == name)
        try:
            return await tool.call(arguments)
        finally:
            await anyio.to_thread.run_sync(tool.close)

    return anyio.run(main)


def _digest(url: str) -> str:
    return hashlib.sha256(Path(url.partition(":")[2]).read_bytes()).hexdigest()


def test_rows_come_as_json_and_as_a_table(url: str) -> None:
    outcome = called(url, "query", sql="SELECT customer, count(*) AS n FROM orders GROUP BY customer ORDER BY customer")
    assert outcome.data == {"columns": ["customer", "n"], "rows": [["Ada", 2], ["Bob", 1]], "complete": True}
    assert outcome.text.splitlines() == ["| customer | n |", "| --- | --- |", "| Ada | 2 |", "| Bob | 1 |", "(2 rows)"]


def test_tables_are_listed_with_their_columns(url: str) -> None:
    (schema,) = called(url, "tables").data
    by_name = {table["name"]: table for table in schema["tables"]}
    assert set(by_name) == {"orders", "sums"}
    assert by_name["sums"]["kind"] == "view"
    assert [column["name"] for column in by_name["orders"]["columns"]] == ["id", "customer", "total", "day"]
    assert not by_name["orders"]["columns"][1]["nullable"]


def test_parameters_are_bound_and_never_read_as_sql(url: str) -> None:
    evil = "Ada' OR 1=1 --"
    assert called(url, "query", sql="SELECT id FROM orders WHERE customer = ?", parameters=[evil]).data["rows"] == []
    found = called(url, "query", sql="SELECT id FROM orders WHERE customer = ? AND id > ?", parameters=["Ada", 1])
    assert found.data["rows"] == [[3]]


def test_odd_values_have_a_form_in_json(url: str) -> None:
    sql = "SELECT 9007199254740993, CAST('x' AS BLOB), NULL, 1e999, 0.5, 'a|b', CAST(total AS TEXT) FROM orders LIMIT 1"
    if url.startswith("duckdb"):
        sql = sql.replace("1e999", "'inf'::DOUBLE").replace("CAST(total AS TEXT)", "total")
    (row,) = called(url, "query", sql=sql).data["rows"]
    assert row[:5] == ["9007199254740993", "base64:eA==", None, "inf", row[4]]
    assert float(row[4]) == 0.5
    assert row[6] in ("12.5", "12.50")


WRITES = [
    "INSERT INTO orders VALUES (9, 'x', 1, NULL)",
    "UPDATE orders SET total = 0",
    "DELETE FROM orders",
    "DROP TABLE orders",
    "DROP VIEW sums",
    "CREATE TABLE x (a INTEGER)",
    "CREATE TEMP TABLE x AS SELECT 1",
    "CREATE VIEW v AS SELECT 1",
    "CREATE INDEX i ON orders (customer)",
    "ALTER TABLE orders ADD COLUMN x TEXT",
    "WITH x AS (SELECT 1) INSERT INTO orders SELECT 9, 'x', 1, NULL",
    "SELECT 1; DELETE FROM orders",
    "DELETE FROM orders; SELECT 1",
    "EXPLAIN ANALYZE DELETE FROM orders",
    "BEGIN",
    "COMMIT",
    "VACUUM",
    "ANALYZE",
    "-- nothing",
    "",
    ";;",
]
# It knows this one, and answers with nothing.
HARMLESS_IN_SQLITE: set[str] = set()
SQLITE_ESCAPES = [
    "ATTACH '{file}' AS other",
    "ATTACH ':memory:' AS other",
    "VACUUM INTO '{file}'",
    "DETACH main",
    "PRAGMA query_only = OFF",
    "PRAGMA writable_schema = ON",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA user_version = 7",
    "PRAGMA trusted_schema = ON",
    "PRAGMA temp_store_directory = '/tmp'",
    "PRAGMA schema_version = 99",
    "SELECT load_extension('{file}')",
    "SELECT fts3_tokenizer('simple')",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('{file}', 'x')",
    "CREATE VIRTUAL TABLE v USING fts5(a)",
    "CREATE TEMP TRIGGER t AFTER INSERT ON orders BEGIN SELECT 1; END",
    "REINDEX",
    "SAVEPOINT x",
    "SELECT edit('x', 'touch {file}')",
]
DUCKDB_ESCAPES = [
    "COPY orders TO '{file}'",
    "COPY (SELECT 1) TO '{file}'",
    "COPY orders FROM '/etc/passwd'",
    "EXPORT DATABASE '{file}'",
    "IMPORT DATABASE '/tmp'",
    "ATTACH '{file}' AS other",
    "ATTACH ':memory:' AS other",
    "DETACH shop",
    "INSTALL httpfs",
    "LOAD httpfs",
    "INSTALL httpfs FROM 'http://169.254.169.254/'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM read_blob('/etc/passwd')",
    "SELECT * FROM read_json('/etc/passwd')",
    "SELECT * FROM read_parquet('/etc/passwd')",
    "SELECT * FROM sniff_csv('/etc/passwd')",
    "SELECT * FROM parquet_metadata('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM 'http://169.254.169.254/x.csv'",
    "SELECT * FROM glob('/etc/*')",
    "SELECT getenv('HOME')",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
    "SELECT * FROM query_table('/etc/passwd')",
    "EXPLAIN ANALYZE COPY orders TO '{file}'",
    "EXPLAIN ANALYZE SELECT * FROM read_text('/etc/passwd')",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "SET memory_limit = '100GB'",
    "RESET lock_configuration",
    "PRAGMA enable_profiling",
    "PRAGMA database_size",
    "SELECT * FROM sqlite_scan('{file}', 'x')",
    "CREATE SECRET s (TYPE s3)",
    "CREATE MACRO m() AS 1",
    "PREPARE p AS SELECT 1",
    "CALL pragma_version()",
    "USE memory",
    "CHECKPOINT",
    "SELECT * FROM a_local_table",
    "SELECT * FROM getvariable('x')",
    "SELECT * FROM which_secret('x', 's3')",
]


@pytest.fixture(scope="module", params=["sqlite", "duckdb"])
def shop(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path, Database]]:
    """One database for all refusals: what one of them left behind, the next ones would see."""
    folder = tmp_path_factory.mktemp("shop")
    connection: Any
    if request.param == "sqlite":
        connection = sqlite3.connect(folder / "shop")
        connection.executescript(SCRIPT)
    else:
        connection = duckdb.connect(str(folder / "shop"))
        connection.execute(SCRIPT)
    connection.close()
    database = opened(f"{request.param}:{folder / 'shop'}")
    yield request.param, folder, database
    database.close()


@pytest.mark.parametrize("sql", sorted({*WRITES, *SQLITE_ESCAPES, *DUCKDB_ESCAPES}))
def test_nothing_is_written_and_nothing_beyond_is_reached(shop: tuple[str, Path, Database], sql: str) -> None:
    """Each trick is tried on both."""
    kind, folder, database = shop
    before = _digest(f"{kind}:{folder / 'shop'}")
    if not (kind == "sqlite" and sql in HARMLESS_IN_SQLITE):
        with pytest.raises(SqlError):
            database.query(sql.format(file=folder / "target"), [], Limits(seconds=5.0), NEVER)
    assert _digest(f"{kind}:{folder / 'shop'}") == before
    assert database.query("SELECT count(*) FROM orders", [], Limits(), NEVER).rows == [[3]]
    assert [each.name for each in folder.iterdir()] == ["shop"]


def test_a_writable_database_is_written_and_still_goes_nowhere_else(url: str, tmp_path: Path) -> None:
    called(url, "query", writable=True, sql="INSERT INTO orders VALUES (?, 'Cy', 2, NULL)", parameters=[9])
    assert called(url, "query", sql="SELECT count(*) FROM orders").data["rows"] == [[4]]
    for sql in (f"ATTACH '{tmp_path / 'other'}' AS other", f"VACUUM INTO '{tmp_path / 'other'}'"):
        with pytest.raises(SqlError):
            called(url, "query", writable=True, sql=sql)
    assert not (tmp_path / "other").exists()


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT {what} FROM c"


def test_an_endless_query_is_ended(url: str) -> None:
    before = time.perf_counter()
    with pytest.raises(SqlError, match=r"longer than 0\.5 s"):
        called(url, "query", options={"seconds": 0.5}, sql=ENDLESS.format(what="count(*)"))
    assert time.perf_counter() - before < 5.0


def test_a_query_ends_when_nobody_waits(url: str) -> None:
    over = threading.Event()
    database = opened(url)
    timer = threading.Timer(0.3, over.set)
    timer.start()
    before = time.perf_counter()
    with pytest.raises(SqlError):
        database.query(ENDLESS.format(what="max(x)"), [], Limits(seconds=60.0), over.is_set)
    assert time.perf_counter() - before < 5.0
    assert database.query("SELECT 1", [], Limits(), NEVER).rows == [[1]]
    database.close()
    timer.join()


def test_rows_and_bytes_are_bounded(url: str) -> None:
    numbers = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 5000) SELECT x FROM c"
    found = called(url, "query", sql=numbers, limit=7).data
    assert len(found["rows"]) == 7
    assert not found["complete"]
    wide = "SELECT {0}, {0}, {0}".format("printf('%.*c', 600, 'x')" if url.startswith("sqlite") else "repeat('x', 600)")
    with pytest.raises(SqlError, match="a single row"):
        called(url, "query", options={"max_bytes": 1024}, sql=wide)
    some = called(url, "query", options={"max_bytes": 1024}, sql=numbers, limit=1000).data
    assert len(some["rows"]) == 128
    assert not some["complete"]


@pytest.mark.parametrize("size", [10**9, pytest.param(2**31 - 1, marks=pytest.mark.slow)])
def test_a_value_cannot_fill_the_memory(url: str, size: int) -> None:
    sql = f"SELECT length(zeroblob({size}))" if url.startswith("sqlite") else f"SELECT sum(length(repeat('x', {size})))"
    with pytest.raises(SqlError):
        called(url, "query", options={"seconds": 2.0}, sql=f"{sql} FROM orders, orders AS b")


def test_errors_name_what_is_wrong(url: str) -> None:
    with pytest.raises(SqlError, match="orderz") as caught:
        called(url, "query", sql="SELECT * FROM orderz")
    assert "tables" in caught.value.hint
    with pytest.raises(ToolError, match="no database 'other'"):
        called(url, "query", sql="SELECT 1", database="other")
    with pytest.raises(SqlError):
        called(url, "query", sql="SELECT ?", parameters=[])


def test_annotations_say_whether_it_writes(url: str) -> None:
    read, write = (
        next(tool for tool in tools(SqlOptions({"a": url}, writable)) if tool.info.name == "query").info.annotations
        for writable in ((), ("a",))
    )
    assert read.read_only
    assert not read.destructive
    assert not write.read_only
    assert write.destructive


def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all" * 100)
    for url in (f"sqlite:{tmp_path / 'text'}", f"duckdb:{tmp_path / 'text'}", f"sqlite:{tmp_path / 'none'}"):
        with pytest.raises(SqlError):
            opened(url)
    assert not (tmp_path / "none").exists()
    for url in ("postgres://x", "sqlite", ""):
        with pytest.raises(ConfigError, match="names no database"):
            opened(url)
    with pytest.raises(ToolError, match="there is no database"):
        called(f"sqlite:{tmp_path / 'none'}", "tables")
