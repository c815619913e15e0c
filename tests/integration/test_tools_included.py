"""The included tools on a daemon as users run it: announced, given their options by the settings, called by command."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from board import Board

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "openapi"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("included")
    (base / "docs").mkdir()
    (base / "docs" / "guide.md").write_text("# Start\n\nThe lighthouse is lit at dusk.\n")
    with sqlite3.connect(base / "shop.db") as connection:
        connection.execute("CREATE TABLE orders (id INTEGER, customer TEXT)")
        connection.execute("INSERT INTO orders VALUES (1, 'Ada')")
    connection.close()
    # The daemon stands elsewhere than the project whose file it is told to go by.
    (base / "callboard.toml").write_text(f'[tools.files]\nroots = {{ docs = "{base / "docs"}" }}\n')
    board = Board.at(
        base,
        CALLBOARD_TOOLS_DOCUMENTS=f'{{roots = {{docs = "{base / "docs"}"}}}}',
        CALLBOARD_TOOLS_SQL=f'{{databases = {{shop = "sqlite:{base / "shop.db"}"}}}}',
        CALLBOARD_TOOLS_OPENAPI=f'{{apis = {{weather = {{document = "{EXAMPLES / "weather.yaml"}"}}}}}}',
    )
    board.cwd = str(base)
    board.up()
    yield board
    board.close()


def call(board: Board, *arguments: str) -> subprocess.CompletedProcess[str]:
    return board.run("tool", "call", *arguments)


def test_all_of_them_are_listed(daemon: Board) -> None:
    done = daemon.run("tool", "list", "--json")
    assert done.returncode == 0, done.stderr
    names = {tool["name"] for tool in json.loads(done.stdout)}
    assert names >= {
        *("calculator", "files.list", "files.read", "files.search", "documents.search", "web.fetch", "web.search"),
        *("arxiv.search", "sql.tables", "sql.query", "data.query", "data.plot", "openapi.weather_forecast"),
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("calculator", "expression=3 ft + 2 in to cm"), "96.52 cm"),
        (("files.search", "pattern=lighthouse"), "docs/guide.md:3: The lighthouse is lit at dusk."),
        (("files.read", "path=docs/guide.md", "first_line=3"), "The lighthouse is lit at dusk."),
        (("documents.search", "query=lighthouse"), "docs/guide.md, lines 1 to 3"),
        (("sql.query", "sql=SELECT customer FROM orders"), "| Ada |"),
    ],
)
def test_a_call_by_command(daemon: Board, arguments: tuple[str, ...], says: str) -> None:
    done = call(daemon, *arguments)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("calculator", "expression=9^9^9^9"), "too large to work out"),
        (("files.read", "path=docs/../shop.db"), "leads out of the folder"),
        (("sql.query", "sql=DELETE FROM orders"), "not allowed here"),
        (("web.fetch", "url=http://127.0.0.1:8080/"), "loopback"),
        (("web.search", "query=x"), "no search provider is set"),
        (("openapi.weather_forecast", "latitude=100", "longitude=0"), "latitude"),
    ],
)
def test_what_is_refused_says_why(daemon: Board, arguments: tuple[str, ...], says: str) -> None:
    done = call(daemon, *arguments)
    assert done.returncode in (1, 2)  # the work failed, or the configuration is to be completed
    assert says in done.stderr
    assert "Traceback" not in done.stderr
