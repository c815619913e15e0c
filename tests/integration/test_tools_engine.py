"""A set of tools that is told of an engine may ask it and nobody else: documents by their meaning, and translations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from board import Board

from callboard.runtime.identity import read_creds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

PAGES = ("The lighthouse is lit at dusk.", "Ships sound their horns in fog.", "The keeper writes the log at noon.")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("engine")
    (base / "docs").mkdir()
    for number, text in enumerate(PAGES):
        (base / "docs" / f"{number}.txt").write_text(text)
    board = Board.at(
        base,
        CALLBOARD_TOOLS_DOCUMENTS=f'{{roots = {{docs = "{base / "docs"}"}}, engine = "engine"}}',
        CALLBOARD_TOOLS_TRANSLATE='{engine = "play"}',
    )
    board.up()
    config = {"model": str(tiny_path), "num_blocks": 64, "max_batch_tokens": 64, "threads": 1, "block_size": 4}
    # A first import of torch on a busy machine may take longer than a command may in other tests.
    spawn = board.start("spawn", "serve.engine", "--name", "engine", "--process", "--config", json.dumps(config))
    _, said = spawn.communicate(timeout=150)
    assert spawn.returncode == 0, said
    yield board
    board.close()


def search(daemon: Board, query: str) -> Any:
    done = daemon.run("tool", "call", "documents.search", f"query={query}", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["value"]


def test_a_text_is_translated_by_a_model_of_the_company(daemon: Board) -> None:
    wanted = "from English into German"
    answers = [{"text": " Der Leuchtturm.\n", "match": "contains", "pattern": wanted}, {"text": "x", "times": 0}]
    done = daemon.run(
        "spawn", "agent.scripted", "--name", "play", "--config", json.dumps({"answers": answers, "ordered": False})
    )
    assert done.returncode == 0, done.stderr
    arguments = ("text=The lighthouse.", "source=English", "target=German")
    done = daemon.run("tool", "call", "translate", *arguments)
    assert (done.returncode, done.stdout) == (0, "Der Leuchtturm.\n"), done.stderr
    assert read_creds(daemon.paths.state / "creds" / "translate.creds").may_ask == {"play"}
    assert daemon.run("stop", "play").returncode == 0
    done = daemon.run("tool", "call", "translate", *arguments)
    assert done.returncode == 1
    assert "'play' cannot translate this" in done.stderr


def test_documents_are_found_by_their_meaning_and_without_the_engine_by_their_words(daemon: Board) -> None:
    found = search(daemon, "lighthouse")
    assert (found["by_meaning"], found["complete"]) == (True, True)
    assert found["passages"][0]["text"] == PAGES[0]
    assert len(found["passages"]) == len(PAGES)  # no other has the word
    # A text is nearest to itself, whatever the model.
    assert search(daemon, PAGES[2])["passages"][0]["text"] == PAGES[2]
    assert read_creds(daemon.paths.state / "creds" / "documents.creds").may_ask == {"engine"}
    assert daemon.run("stop", "engine").returncode == 0
    found = search(daemon, "lighthouse")
    assert found["by_meaning"] is False
    assert [passage["text"] for passage in found["passages"]] == [PAGES[0]]
