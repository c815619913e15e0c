"""`callboard web --gradio` and `--tui`: pages that others' packages make, each in an environment of its own."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distribution
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from board import Board, running
from foreign import PEERS, ROOT, python_of
from gateways import idle, start_engine
from own_server import OwnServer

from callboard.actors.gateway.web_terminal import command_of, free_port
from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node
from callboard.schemas.serve import ChatMessage, Generate

TYPING = str(ROOT / ".venv" / "typing")


@contextmanager
def serving(*command: str | Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that prints where it serves, and then does."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": TYPING, **environment},
    )
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        if not first:
            process.kill()
            pytest.fail(process.communicate()[1][-4000:])
        yield process, first.strip()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_for(url: str) -> None:
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.URLError:  # it is about to listen; the test's own deadline ends this
            time.sleep(0.05)


def used(name: str, *arguments: str) -> dict[str, Any]:
    command = [str(python_of(name.partition("/")[0])), str(PEERS / f"use_{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def named(folder: Path) -> Path:
    """A folder by which another Python knows the commands of this installation."""
    (place,) = (file.locate() for file in distribution("callboard").files or () if file.name == "entry_points.txt")
    (folder / Path(str(place)).parent.name).symlink_to(Path(str(place)).parent)
    return folder


@pytest.mark.anyio
@pytest.mark.foreign
@pytest.mark.timeout(1200)
async def test_gradio_shows_what_the_model_says(server: OwnServer, long_path: Path, tmp_path: Path) -> None:
    python = await anyio.to_thread.run_sync(python_of, "gradio")
    command = (python, "-m", "callboard.runtime.cli", "web", "--gradio", "--no-browser", "--json", "--nats", server.url)
    async with Node("main", bus=BusOptions(server.url)) as node:
        await start_engine(node, long_path)

        def talk() -> dict[str, Any]:
            with serving(*command, PYTHONPATH=f"{TYPING}:{named(tmp_path)}") as (_, said):
                return used("gradio", json.loads(said)["url"], str(long_path))

        found = await anyio.to_thread.run_sync(talk)
        request = Generate(messages=(ChatMessage("user", "hello"),), temperature=0.0, max_tokens=12)
        alone = await node.actor("engine").ask(request)
        await idle(node)
    assert found["text"] == alone.text != ""
    grown = found["grown"]
    assert len(grown) > 2
    assert grown[-1] == found["text"]
    assert all(after.startswith(before) for before, after in pairwise(grown))
    assert found["second"]


@pytest.mark.foreign
@pytest.mark.timeout(1200)
def test_the_terminal_runs_in_a_browser_for_its_own_page_alone() -> None:
    with serving(python_of("textual-serve"), PEERS / "serve_terminal.py") as (_, url):
        wait_for(url)
        found = used("textual-serve", url)
    status, page = found["page"]
    assert status == 200
    assert "Callboard" in page
    assert f"ws:{url.removeprefix('http:')}/ws" in page
    assert (found["foreign"], found["none"], found["terminal"]) == (403, 403, True)


@pytest.mark.foreign
@pytest.mark.timeout(1200)
def test_the_real_terminal_shows_the_company_in_a_browser(tmp_path: Path) -> None:
    command = (python_of("textual-serve"), "-m", "callboard.runtime.cli", "web", "--tui", "--no-browser", "--json")
    with running(tmp_path) as board:
        spawned = board.run("spawn", "counter", "--name", "prompter")
        assert spawned.returncode == 0, spawned.stderr
        with serving(*command, **board.environment, PYTHONPATH=f"{TYPING}:{named(tmp_path)}") as (_, said):
            url = json.loads(said)["url"].rstrip("/")
            wait_for(url)
            # The company's page is F3, where the actor stands; Ctrl+Q ends it.
            script = [("connected", "\x1bOR"), ("prompter", "\x11")]
            found = used("textual-serve", url, json.dumps(script))
    assert found == {"seen": ["connected", "prompter"], "ended": True}


def test_the_terminal_is_on_the_bus_that_was_named() -> None:
    named = Namespace(nats="nats://127.0.0.1:4222", creds="my file.creds", state_dir="", tls_ca=None)
    words = shlex.split(command_of(named))
    assert words[:4] == [sys.executable, "-m", "callboard.runtime.cli", "tui"]
    assert words[4:] == ["--nats", "nats://127.0.0.1:4222", "--creds", "my file.creds"]
    assert 0 < free_port("127.0.0.1") < 65536


def test_sharing_goes_with_gradio_only(tmp_path: Path) -> None:
    done = Board.at(tmp_path).run("web", "--share")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--share goes with --gradio" in done.stderr


@pytest.mark.parametrize(
    ("option", "module", "extra"), [("--gradio", "gradio", "gradio"), ("--tui", "textual_serve", "web-tui")]
)
def test_what_is_not_installed_is_named_by_its_extra(tmp_path: Path, option: str, module: str, extra: str) -> None:
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed here")
    done = Board.at(tmp_path).run("web", option)
    assert done.returncode == 2, done.stderr
    assert f"callboard[{extra}]" in done.stderr
