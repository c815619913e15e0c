"""Retrieval: what is found is where the citation says, the index follows the folders, and no query is an operator."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pdf_files import pdf

from callboard.actors.models.meaning import Vector
from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.included.files.roots import Roots
from callboard.actors.tools.included.files.walking import Deadline
from callboard.actors.tools.included.retrieval.chunks import MOST, chunks_of
from callboard.actors.tools.included.retrieval.index import Index, query_words
from callboard.actors.tools.included.retrieval.tools import DocumentsOptions, tools
from callboard.actors.tools.outcome import Outcome
from callboard.runtime.errors import ConfigError

GUIDE = """# Install

Use the package manager.

# Configure

The lighthouse keeper sets `timeout` to 30 seconds.
More on that below.

```
# no heading
```
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "docs"
    (root / "deep").mkdir(parents=True)
    (root / "guide.md").write_text(GUIDE)
    (root / "deep" / "paper.pdf").write_bytes(pdf("Nothing here", "The albatross flies over the sea"))
    (root / "page.html").write_text(
        "<html><head><style>.x{}</style><script>var albatross</script></head>\n<body>\n<p>A café in Zürich</p></body>",
        encoding="utf-8",
    )
    (root / "binary.txt").write_bytes(bytes(range(256)))
    (root / "picture.png").write_bytes(b"albatross")
    (root / ".hidden.md").write_text("albatross")
    return root


@pytest.fixture
def index(folder: Path, tmp_path: Path) -> Iterator[Index]:
    roots = Roots({"docs": str(folder)})
    made = Index(tmp_path / "index.sqlite", roots)
    made.refresh(Deadline(60.0))
    yield made
    made.close()
    roots.close()


def call(folder: Path, place: Path, name: str, **arguments: Any) -> Outcome:
    async def main() -> Outcome:
        tool = next(
            tool for tool in tools(DocumentsOptions({"docs": str(folder)}, str(place))) if tool.info.name == name
        )
        try:
            return await tool.call(arguments)
        finally:
            await anyio.to_thread.run_sync(tool.close)

    return anyio.run(main)


def test_a_passage_is_cited_by_lines_or_page(folder: Path, tmp_path: Path) -> None:
    outcome = call(folder, tmp_path / "i", "search", query="lighthouse timeout")
    (passage, *_) = outcome.data["passages"]
    assert passage["citation"] == "docs/guide.md, lines 5 to 12"
    assert passage["heading"] == "Configure"
    assert outcome.text.startswith("[1] docs/guide.md, lines 5 to 12\n# Configure")
    (passage,) = call(folder, tmp_path / "i", "search", query="albatross").data["passages"]
    assert passage["citation"] == "docs/deep/paper.pdf, page 2"
    (passage,) = call(folder, tmp_path / "i", "search", query="cafe zurich").data["passages"]
    assert (passage["path"], passage["first"]) == ("docs/page.html", 3)


def test_lines_are_those_of_the_file(folder: Path, index: Index) -> None:
    text = "\n".join(f"line {n} " + ("word " * (n % 17)) for n in range(1, 900))
    (folder / "long.txt").write_text(text)
    index.refresh(Deadline(60.0))
    lines = text.splitlines()
    for passage in index.search("word", 50, "docs/long.txt"):
        assert passage.text.splitlines() == lines[passage.first - 1 : passage.last]
        assert len(passage.text) <= MOST + 200


def test_the_index_follows_the_folder(folder: Path, index: Index) -> None:
    again = index.refresh(Deadline(60.0))
    assert (again.added, again.removed, again.unchanged) == (0, 0, 4)
    (folder / "guide.md").write_text("The penguin swims.")
    (folder / "page.html").unlink()
    (folder / "new.txt").write_text("A penguin, too")
    os.utime(folder / "deep" / "paper.pdf")
    changed = index.refresh(Deadline(60.0))
    assert (changed.added, changed.removed, changed.unchanged) == (2, 1, 2)
    assert {passage.path for passage in index.search("penguin", 9)} == {"docs/guide.md", "docs/new.txt"}
    assert index.search("lighthouse", 9) == []
    assert index.search("cafe", 9) == []


def test_a_refresh_that_is_cut_short_forgets_nothing(folder: Path, index: Index) -> None:
    cut = index.refresh(Deadline(60.0, lambda: True))
    assert not cut.complete
    assert cut.removed == 0
    assert index.search("albatross", 9)


def test_an_index_is_kept_and_one_that_is_damaged_is_made_anew(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "kept"
    assert call(folder, place, "refresh").data["added"] == 4
    assert call(folder, place, "refresh").data["unchanged"] == 4
    place.write_bytes(b"no database" * 1000)
    assert call(folder, place, "refresh").data["added"] == 4
    with sqlite3.connect(place) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert call(folder, place, "refresh").data["added"] == 4
    assert place.stat().st_mode & 0o077 == 0


def test_a_damaged_document_is_a_problem_and_not_the_end(folder: Path, index: Index) -> None:
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.7\n" + bytes(2000))
    done = index.refresh(Deadline(60.0))
    assert done.problems == 1
    ((path, problem),) = index.problems()
    assert path == "docs/damaged.pdf"
    assert "PDF" in problem
    assert index.search("albatross", 9)


def test_links_out_of_the_folder_are_not_indexed(folder: Path, index: Index) -> None:
    (folder.parent / "secret.txt").write_text("a secret walrus")
    (folder / "link.txt").symlink_to("../secret.txt")
    (folder / "up").symlink_to("..")
    index.refresh(Deadline(60.0))
    assert index.search("walrus", 9) == []


def test_all_words_come_before_some(folder: Path, index: Index) -> None:
    (folder / "a.txt").write_text("red red red red boat")
    (folder / "b.txt").write_text("a boat that is blue, and some red on it")
    (folder / "c.txt").write_text("blue")
    index.refresh(Deadline(60.0))
    assert index.search("red blue", 9)[0].path == "docs/b.txt"
    assert len(index.search("red blue", 9)) == 3
    assert [passage.path for passage in index.search('"that is blue"', 9)] == ["docs/b.txt"]
    assert [passage.path for passage in index.search("boat", 9, "docs/a")] == ["docs/a.txt"]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abc \"'*()^:-+{}AND OR NOT NEAR/,\\\n;%_", max_size=40))
def test_no_query_is_an_operator(query: str) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
    words = query_words(query)
    if words:
        for expression in (" ".join(words), " OR ".join(words)):
            connection.execute("SELECT * FROM words WHERE words MATCH ?", (expression,)).fetchall()
    connection.close()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x00\x1b"), max_size=60), max_size=80),
    st.integers(1, 90),
)
def test_chunks_hold_every_word_once(lines: list[str], times: int) -> None:
    text = "\n".join(line * times for line in lines)
    chunks = chunks_of("x.md", text.encode())
    joined = "".join("".join(chunk.text.split()) for chunk in chunks)
    if chunks:
        assert joined == "".join(text.split())
    assert all(len(chunk.text) <= MOST + 1 for chunk in chunks)
    assert all(chunk.first <= chunk.last for chunk in chunks)


def test_vectors_belong_to_a_passage_as_it_is_and_to_a_model(folder: Path, index: Index) -> None:
    rows = index.without_vector("m", 100)
    assert len(rows) == len({number for number, _ in rows}) == 5
    index.put_vectors("m", [Vector.of(number, [float(place), 1.0]) for place, (number, _) in enumerate(rows)])
    assert index.without_vector("m", 100) == []
    assert len(index.without_vector("another", 100)) == 5
    assert len(index.vectors("m", "docs/guide.md")) == 2
    (folder / "guide.md").write_text("Now it says something else.")
    index.refresh(Deadline(60.0))
    assert [text for _, text in index.without_vector("m", 100)] == ["Now it says something else."]
    assert len(index.vectors("m")) == 3
    index.put_vectors("m", [Vector.of(10_000, [1.0])])  # of a passage that is gone
    assert len(index.vectors("m")) == 3


def test_without_a_bus_documents_are_found_by_words_and_it_says_so(folder: Path, tmp_path: Path) -> None:
    async def main() -> Outcome:
        search, _ = tools(DocumentsOptions({"docs": str(folder)}, str(tmp_path / "i"), engine="engine"))
        try:
            return await search.call({"query": "lighthouse"})
        finally:
            await anyio.to_thread.run_sync(search.close)

    outcome = anyio.run(main)
    assert outcome.data["passages"][0]["path"] == "docs/guide.md"
    assert outcome.data["by_meaning"] is False
    assert "found by words alone: the tool runs without a bus" in outcome.text


def test_a_query_without_words_and_a_set_without_folders(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="no words"):
        call(folder, tmp_path / "i", "search", query='"" - *')
    with pytest.raises((ToolError, ConfigError), match="no documents"):
        anyio.run(tools(DocumentsOptions())[0].call, {"query": "x"})
