"""Adapters to and from other frameworks' tools, each with the real package, in an environment of its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board import Board, install_toolbox, running

from callboard.actors.tools.adapters.callee import callee, framework
from callboard.runtime.errors import UsageError

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).with_name("peers")

slow = pytest.mark.foreign


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("adapters")
    with running(base, PYTHONPATH=str(install_toolbox(base / "site"))) as board:
        yield board


def python_of(name: str) -> Path:
    """The Python of `.venv-peers/NAME`, which is made if it is not what its requirements say."""
    folder = ROOT / ".venv-peers" / name
    asked = [PEERS / f"requirements-{name}.txt", *PEERS.glob(f"requirements-{name}-alone.txt")]
    stamp = folder / ".installed"
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in asked)).hexdigest()
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            for path in asked:
                # What asks for far more than its tools need is installed by itself, beside what they do need.
                alone = ["--no-deps"] if path.stem.endswith("-alone") else []
                pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                subprocess.run([*pip, *alone, "-r", path], check=True)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def used(name: str, daemon: Board) -> dict[str, Any]:
    """What `peers/use_NAME.py` found out, run with the real package."""
    environment = {**os.environ, **daemon.environment, "PYTHONPATH": str(ROOT / ".venv" / "typing")}
    command = [python_of(name), PEERS / f"use_{name}.py", daemon.paths.state]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@slow
@pytest.mark.timeout(900)
def test_langchain(daemon: Board) -> None:
    found = used("langchain", daemon)
    theirs = found["theirs"]
    assert (theirs["name"], theirs["description"], theirs["read_only"]) == ("search", "Look for something.", True)
    assert theirs["schema"]["properties"]["query"]["description"] == "what to look for"
    assert theirs["schema"]["required"] == ["query"]
    assert theirs["value"] == ["x 0", "x 1"]
    assert theirs["wrong"].startswith("ToolArguments: the arguments do not fit: `query` is missing")
    assert theirs["refused"] == "ToolError: no: why"
    assert theirs["polite"] == ["polite_refusal", "ToolError: sorry: why"]
    assert theirs["drawn"][1] == '{"text":"drew a dot","media":["image-1"]}'
    assert theirs["drawn"][2] == [["image/png", True]]
    assert set(theirs["injected"]) == {"text"}
    ours = found["ours"]
    assert ours["name"] == "add"
    assert ours["schema"]["properties"]["a"] == {"type": "integer", "description": "the first"}
    assert (ours["content"], ours["artifact"], ours["plain"]) == ("42", "42", "2")
    assert ours["refused"] == ["error", "no negative numbers\nuse positive ones"]
    assert (ours["media"], ours["same"]) == (["text", "image"], True)
    assert found["blocking"] == "5"
    assert found["company"] == {
        "names": ["box_add", "box_count", "box_count_on_loop"],
        "added": "11",
        "wrong": "error",
        "awaited": "8",
    }


@slow
@pytest.mark.timeout(900)
def test_smolagents(daemon: Board) -> None:
    found = used("smolagents", daemon)
    theirs = found["theirs"]
    assert theirs["schema"]["required"] == ["city"]
    assert theirs["schema"]["properties"]["days"]["type"] == ["integer", "null"]
    assert theirs["value"] == '"Ulm in 2 days: rain"'
    assert theirs["left_out"] == theirs["null"] == '"Ulm in 0 days: rain"'
    assert theirs["wrong"].startswith("ToolArguments")
    assert theirs["failed"] == "ToolFailed: the tool weather failed: ValueError: there is no such city"
    assert theirs["grey"] == ["image/png", "L"]
    assert theirs["object"] == ["b", "data"]
    assert theirs["image_schema"]["format"] == "image"
    ours = found["ours"]
    assert ours["inputs"]["a"] == {"type": "integer", "description": "the first"}
    assert ours["inputs"]["how"] == {
        "type": "string",
        "description": "how to do it",
        "nullable": True,
        "enum": ["loud", "plain"],
    }
    assert ours["output_type"] == "integer"
    assert [ours[way] for way in ("named", "by_place", "left_out", "ran")] == [3, 6, 2, 42]
    assert ours["refused"] == "no negative numbers"
    assert (ours["name"], ours["kinds"]) == ("class_", {"image": ["image", False], "label": ["string", True]})
    assert ours["classified"] == {"size": [1, 1], "label": None}
    assert (ours["mirror_type"], ours["mirrored"][1], bool(ours["mirrored"][0])) == ("image", [1, 1], True)
    assert ours["report"] == "all is well"
    assert "def add(a: integer, b: integer" in ours["prompt"]
    assert found["company"] == ["box_add", 11]


@slow
@pytest.mark.timeout(900)
def test_lagent(daemon: Board) -> None:
    found = used("lagent", daemon)
    theirs = found["theirs"]
    assert theirs["name"] == "Bold"
    assert theirs["schema"]["properties"]["times"] == {"type": "number", "description": "how bold"}
    assert theirs["schema"]["required"] == ["text"]
    assert theirs["bold"] == '"****x****"'
    assert theirs["failed"] == "ToolError: that cannot be bold"
    assert theirs["wrong"].startswith("ToolArguments")
    assert theirs["sums"] == ["Sums_plus", "Sums_negative"]
    assert (json.loads(theirs["plus"]), theirs["negative"]) == ('{"sum": 3.5}', '"-3"')
    assert theirs["drawn"][0].startswith('{"text":"drew a dot"')
    assert theirs["drawn"][1] == [["drawn.png", "image/png", True]]
    ours = found["ours"]
    assert ours["description"]["name"] == "add"
    assert ours["description"]["parameters"][0] == {"name": "a", "type": "NUMBER", "description": "the first"}
    assert ours["done"] == [0, "42", "add"]
    assert ours["refused"] == [-1002, "no negative numbers (use positive ones)"]
    assert ours["wrong"] == -1001
    assert (ours["apis"], ours["added"]) == (["add", "pixel"], "2")
    assert ours["pixel"] == ["image", True]
    assert ours["nothing"] == -1002
    assert found["company"] == ["box_add", "11"]


def test_a_framework_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="cannot be imported") as raised:
        framework("no_such_framework", "no-such-framework")
    assert raised.value.hint == "pip install no-such-framework"


def test_a_tool_is_called_from_any_thread_and_never_from_its_own_loop() -> None:
    import asyncio

    from callboard import tool

    @tool
    def double(n: int) -> int:
        """Twice as much."""
        return 2 * n

    called = callee(double)
    assert called.call({"n": 4}).value == "8"

    async def from_a_loop() -> str:
        return (await called.acall({"n": 5})).value

    assert asyncio.run(from_a_loop()) == "10"

    async def blocks() -> None:
        with pytest.raises(UsageError, match="without awaiting"):
            called.call({"n": 1})

    asyncio.run_coroutine_threadsafe(blocks(), called.loop).result(10)
