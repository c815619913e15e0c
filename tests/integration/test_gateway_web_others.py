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
from itertools import pairwise
from pathlib import Path

import pytest
from board import Board
from foreign import PEERS, ROOT, python_of

from callboard.actors.gateway.web_terminal import command_of, free_port

TYPING = str(ROOT / ".venv" / "typing")


@contextmanager
def serving(*command: str | Path, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that prints where it serves, and then does."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": TYPING},
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


def used(name: str, *arguments: str) -> dict[str, object]:
    command = [str(python_of(name.partition("/")[0])), str(PEERS / f"use_{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def finished(board: Board, *arguments: str) -> str:
    """What a command prints, however busy the machine is."""
    process = board.start(*arguments)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return out


@pytest.mark.foreign
@pytest.mark.timeout(1200)
def test_gradio_shows_what_the_model_says(tmp_path: Path, tiny_path: Path) -> None:
    board = Board.at(tmp_path)
    try:
        finished(board, "up", "--detach", "--model", str(tiny_path))
        page = ("-m", "callboard.runtime.cli", "web", "--gradio", "--no-browser", "--json")
        with serving(python_of("gradio"), *page, **board.environment) as (_, said):
            found = used("gradio", json.loads(said)["url"], str(tiny_path))
        alone = finished(board, "chat", "-p", "hello", "--max-tokens", "12", "--temperature", "0", "--json")
        assert found["text"] == json.loads(alone)["text"] != ""
        grown = found["grown"]
        assert isinstance(grown, list)
        assert len(grown) > 2
        assert grown[-1] == found["text"]
        assert all(after.startswith(before) for before, after in pairwise(grown))
        assert found["second"]
    finally:
        board.close()


@pytest.mark.foreign
@pytest.mark.timeout(1200)
def test_the_terminal_runs_in_a_browser_for_its_own_page_alone() -> None:
    with serving(python_of("textual-serve"), PEERS / "serve_terminal.py") as (_, url):
        wait_for(url)
        found = used("textual-serve", url)
    status, page = found["page"]  # pyright: ignore[reportGeneralTypeIssues]
    assert status == 200
    assert "Callboard" in page
    assert f"ws:{url.removeprefix('http:')}/ws" in page
    assert (found["foreign"], found["none"], found["terminal"]) == (403, 403, True)


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
