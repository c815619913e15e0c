"""The process that DuckDB runs in: statements on stdin, what came of each on stdout, a line of JSON each.

It limits itself before it opens anything: address space, processor time, no files written unless the database may be,
and an alarm that ends it whatever DuckDB does.
"""

from __future__ import annotations

import resource
import signal
import sys
from typing import Any

import msgspec

from ..optional import need
from .database import Interrupter, Limits, SqlError, collected

# DuckDB's own limit, which it works within; and the one of the process, which holds when it does not.
MEMORY = "1GB"
ADDRESS_SPACE = 6 << 30
# Seconds after the statement's time that the alarm goes off; DuckDB is asked to stop first.
_GRACE_S = 2
_READS = {"SELECT", "EXPLAIN"}
_WRITES = {"INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP", "MERGE_INTO"}


class Statement(msgspec.Struct, frozen=True):
    path: str
    writable: bool
    sql: str
    parameters: Any
    rows: int
    max_bytes: int
    seconds: float


class Said(msgspec.Struct, frozen=True):
    """The rows, or an error."""

    columns: list[str] = []
    rows: list[list[Any]] = []
    complete: bool = True
    error: str = ""
    hint: str = ""
    refused: bool = False


def closed_configuration() -> dict[str, Any]:
    """Settings of a DuckDB that reaches nothing outside of its file, and cannot be talked into it."""
    return {
        "enable_external_access": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "allow_unsigned_extensions": "false",
        "python_enable_replacements": "false",
        "memory_limit": MEMORY,
        "threads": 2,
        "temp_directory": "",
        "lock_configuration": "true",
    }


def answer(statement: Statement) -> Said:
    """What DuckDB says."""
    duckdb = need("duckdb", "tools", "asking a DuckDB database")
    interrupter: Interrupter | None = None
    connection: Any = None
    try:
        connection = duckdb.connect(statement.path, read_only=not statement.writable, config=closed_configuration())
        parsed = connection.extract_statements(statement.sql)
        if len(parsed) != 1:
            return Said(error="only one statement at a time", hint="send the others one by one")
        kind = parsed[0].type.name
        if kind not in (_READS | _WRITES if statement.writable else _READS):
            return Said(error=f"{kind} is not allowed here", refused=True)
        interrupter = Interrupter(connection.interrupt, statement.seconds, lambda: False)
        with interrupter.watching():
            connection.execute(parsed[0], statement.parameters or None)
            columns = [entry[0] for entry in connection.description or ()]
            limits = Limits(statement.rows, statement.max_bytes, statement.seconds)
            found = collected(columns, connection.fetchone, limits)
        return Said(found.columns, found.rows, found.complete)
    except duckdb.PermissionException as error:
        return Said(error=f"this statement is not allowed here: {error}", refused=True)
    except SqlError as error:
        return Said(error=str(error), hint=error.hint)
    except MemoryError:
        return Said(error="the query needs more memory than it may have", hint="ask for less at once")
    except (duckdb.Error, ValueError, OverflowError, RuntimeError) as error:
        failure = interrupter.failure(error) if interrupter else SqlError(f"the database does not take it: {error}")
        return Said(error=str(failure), hint=failure.hint)
    finally:
        if connection is not None:
            connection.close()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    need("duckdb", "tools", "asking a DuckDB database")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for line in sys.stdin.buffer:
        statement = msgspec.json.decode(line, type=Statement)
        if not statement.writable:
            # A pipe is no file: the answer still gets out.
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        signal.setitimer(signal.ITIMER_REAL, statement.seconds + _GRACE_S)
        said = answer(statement)
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
