"""The README and the quickstarts do what they say: their Python runs, their command lines parse, their links lead."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from board import Board

from callboard.runtime.registry import COMMANDS, registry

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICKSTARTS = [
    page for page in PAGES if page.name.startswith(("README", "quickstart-", "durable-state", "work-queue", "serving"))
]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(callboard [^`]+)`")
LINK = re.compile(r"\]\((?!\w+:)([^)#]+)")


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text()) if found == language]


def python_blocks() -> Iterator[Any]:
    for page in QUICKSTARTS:
        for number, body in enumerate(blocks(page, "python")):
            yield pytest.param(body, id=f"{page.name}-{number}")


def commands(text: str) -> Iterator[str]:
    """Every `callboard ...` in a piece of shell: prompts, comments, pipes and `[optional]` brackets taken off."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars="|&;")
        lexer.whitespace_split = True
        words = [*lexer, ";"]
        while words:
            end = next(index for index, word in enumerate(words) if set(word) <= set("|&;"))
            command, words = words[:end], words[end + 1 :]
            if command[:1] == ["callboard"]:
                yield shlex.join(word.removeprefix("[").removesuffix("]") for word in command[1:])


def command_lines() -> Iterator[Any]:
    for page in PAGES:
        shell = [line for block in blocks(page, "") for line in commands(block)]
        inline = [line for found in INLINE.findall(page.read_text()) for line in commands(found.replace("\n", " "))]
        for line in dict.fromkeys([*shell, *inline]):
            yield pytest.param(line, id=f"{page.name}: {line}")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    board = Board.at(tmp_path_factory.mktemp("docs"))
    board.up()
    spawned = board.run("spawn", "counter", "--name", "c")
    assert spawned.returncode == 0, spawned.stderr
    yield board
    board.close()


def credentials(board: Board) -> str:
    """What a reader of quickstart-bus.md fills in."""
    made = dict(line.split(maxsplit=1) for line in board.run("creds", "new", "my-program").stdout.splitlines())
    return f"URL = {made['url']!r}\nFILE = {made['creds']!r}\n"


@pytest.mark.parametrize("code", [*python_blocks()])
def test_python_of_the_pages_runs(daemon: Board, tmp_path: Path, code: str) -> None:
    compile(ast.parse(code), "page", "exec")
    if "engine.scheduler" in code or "callboard.pipeline" in code:
        return  # the model's part is the business of the tests of the engine
    script = tmp_path / "page.py"
    script.write_text((credentials(daemon) if "URL" in code else "") + code)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        env={**os.environ, **daemon.environment},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    for expected in re.findall(r"print\(.*\)  # (.+)", code):
        assert expected in done.stdout


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


@pytest.mark.parametrize("line", [*command_lines()])
def test_command_lines_of_the_pages_parse(line: str) -> None:
    name, *arguments = shlex.split(line)
    if name in ("COMMAND", "--help", "--version"):
        return
    known = registry().entries(COMMANDS)
    assert name in known
    parser = Parser(prog=name)
    known[name].load().configure(parser)
    try:
        parser.parse_args(["1" if word == "N" else word for word in arguments])
    except ValueError as error:
        if "are required" not in str(error):  # in a sentence, `callboard creds new` stands for the command
            raise


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), target
