"""The examples in docs/examples do what they say, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from board import Board

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("ten_lines.py", "Count(n=3)\n"),
        ("supervisor.py", "crashed: actor.failed\nQuotient(value=0.25)\n"),
        ("stream.py", "0\n1\n4\n9\ntogether 14\n"),
    ],
)
def test_a_python_example_prints_what_it_should(name: str, printed: str) -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")


def test_the_remote_spawn_places_its_actor_on_the_node_that_has_the_label(tmp_path: Path) -> None:
    board = Board.at(tmp_path / "board")
    try:
        board.up()
        node = board.start("node", "--labels", "gpu", "--name", "far")
        assert node.stderr is not None
        assert "joined" in node.stderr.readline()
        command = [sys.executable, "-W", "error", str(EXAMPLES / "remote_spawn.py")]
        environment = {**os.environ, **board.environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Count(value=2)\nlives on far\n", "")
    finally:
        board.close()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What a program of its own needs to reach a daemon with the counter `c`."""
    board = Board.at(tmp_path / "board")
    board.up()
    spawned = board.run("spawn", "counter", "--name", "c")
    assert spawned.returncode == 0, spawned.stderr
    made = json.loads(board.run("creds", "new", "example", "--json").stdout)
    yield {"URL": made["url"], "CREDS": made["creds"], "INBOX": made["inbox_prefix"]}
    board.close()


def test_the_shell_example_asks_an_actor(request: pytest.FixtureRequest) -> None:
    if shutil.which("nats") is None:
        pytest.skip("the nats command is not installed")
    found = request.getfixturevalue("program")
    environment = {**os.environ, "NATS_URL": found["URL"], "NATS_CREDS": found["CREDS"], "INBOX": found["INBOX"]}
    done = subprocess.run(
        ["sh", str(EXAMPLES / "publish.sh")], capture_output=True, text=True, timeout=30, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"type": "bench.count", "value": 3}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_javascript_example_asks_an_actor(program: dict[str, str]) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = ROOT / ".venv-peers" / "npm-nats"
    if not (folder / "node_modules").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        install = ["npm", "install", "--no-audit", "--no-fund", "nats@2.29.3"]
        done = subprocess.run(install, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm cannot install nats: {done.stderr[-300:]}")
    done = subprocess.run(
        ["node", str(EXAMPLES / "publish.js")],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **program, "NODE_PATH": str(folder / "node_modules")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{ type: 'bench.count', value: 3 }\n"
