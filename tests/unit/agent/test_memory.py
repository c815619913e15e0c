"""What agents remember: found again by words and by meaning, kept through kills, shared by writers at once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.agent.memory.actor import Memory, MemoryConfig
from callboard.actors.agent.memory.errors import MemoryDamaged, MemoryFailed, NoteTooLarge
from callboard.actors.agent.memory.notes import Notes
from callboard.actors.agent.memory.words import match_of
from callboard.actors.models.meaning import Vector, fused, nearest
from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.errors import ModelError, RequestInvalid
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.agent import Forget, Recall, Remember
from callboard.schemas.serve import Embed, Embeddings

pytestmark = pytest.mark.anyio


@pytest.fixture
def notes(tmp_path: Path) -> Any:
    notes = Notes(tmp_path / "notes" / "memory.db")
    yield notes
    notes.check_integrity()
    notes.close()


def kept(notes: Notes, *texts: str, session: str = "s") -> list[str]:
    return [one.id for one in notes.remember([Remember(text, session) for text in texts])]


def found(notes: Notes, query: str, session: str = "", limit: int = 5) -> list[str]:
    return [entry.text for entry in notes.entries(notes.by_words(query, session, limit))]


def test_notes_are_found_by_any_of_their_words_the_best_first(notes: Notes) -> None:
    kept(notes, "the cat sleeps on the mat", "dogs chase cats in the park", "quarterly figures rose by a tenth")
    assert found(notes, "figures of the quarter")[0] == "quarterly figures rose by a tenth"
    assert found(notes, "chasing dogs") == ["dogs chase cats in the park"]
    assert set(found(notes, "cats?")) == {"the cat sleeps on the mat", "dogs chase cats in the park"}
    assert found(notes, "zebra") == []
    assert found(notes, "cat", limit=1) == found(notes, "cat")[:1]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("東京の天気は晴れです", "天気"),
        ("เมืองหลวงคือกรุงเทพ", "กรุงเทพ"),
        ("Les élèves naïfs", "eleves"),
        ("오늘 서울 날씨", "서울"),
        ("path /etc/nats.conf", "nats.conf"),
    ],
)
def test_words_of_other_scripts_are_found(notes: Notes, text: str, query: str) -> None:
    kept(notes, "something else", text)
    assert found(notes, query) == [text]


@given(st.text(max_size=80))
def test_no_question_is_taken_for_a_command_of_the_index(query: str) -> None:
    db = sqlite3.connect(":memory:")
    db.execute("CREATE VIRTUAL TABLE t USING fts5 (a, b)")
    if match := match_of(query):
        db.execute("SELECT * FROM t WHERE t MATCH ?", (match,)).fetchall()
    db.close()


def test_the_latest_come_where_nothing_is_asked_for(notes: Notes) -> None:
    for number in range(4):
        kept(notes, f"note {number}", session="a" if number % 2 else "b")
    assert [entry.text for entry in notes.latest("", 3)] == ["note 3", "note 2", "note 1"]
    assert [entry.text for entry in notes.latest("a", 3)] == ["note 3", "note 1"]


def test_sessions_are_kept_apart(notes: Notes) -> None:
    kept(notes, "secret of a", session="a")
    kept(notes, "secret of b", session="b")
    assert found(notes, "secret", "a") == ["secret of a"]
    assert len(found(notes, "secret")) == 2
    assert notes.forget("a", ()) == 1
    assert found(notes, "secret") == ["secret of b"]


def test_the_same_key_is_kept_once(notes: Notes) -> None:
    first, again, other = notes.remember(
        [Remember("one", "s", "k"), Remember("two", "s", "k"), Remember("three", "t", "k")]
    )
    assert (again.id, again.known, first.known, other.known) == (first.id, True, False, False)
    assert notes.remember([Remember("four", "s", "k")])[0].known
    assert {entry.text for entry in notes.latest("", 9)} == {"one", "three"}


def test_notes_are_forgotten_by_id_in_their_own_session_only(notes: Notes) -> None:
    a, b = kept(notes, "alpha", "beta")
    assert notes.forget("other", (a,)) == 0
    assert notes.forget("s", (a, a, "unknown")) == 1
    assert [entry.id for entry in notes.latest("s", 9)] == [b]
    assert found(notes, "alpha") == []


def test_tags_are_kept_and_found(notes: Notes) -> None:
    notes.remember([Remember("the figures", "s", tags=("finance", "q3"))])
    (entry,) = notes.entries(notes.by_words("finance", "", 5))
    assert entry.tags == ("finance", "q3")
    assert entry.score > 0


def test_a_file_is_for_its_owner_only_and_none_but_ours_is_taken(tmp_path: Path) -> None:
    Notes(tmp_path / "m.db").close()
    assert (tmp_path / "m.db").stat().st_mode & 0o777 == 0o600
    (tmp_path / "text.db").write_text("this is no database, whatever its name says\n" * 20)
    with pytest.raises(MemoryDamaged, match="broken"):
        Notes(tmp_path / "text.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE theirs (a)")
    other.close()
    with pytest.raises(MemoryDamaged, match="no memory of this release"):
        Notes(tmp_path / "other.db")


WRITER = """
import sys
from pathlib import Path
from callboard.actors.agent.memory.notes import Notes
from callboard.schemas.agent import Remember
notes = Notes(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    notes.remember([Remember(f"note {sys.argv[2]} {number}", sys.argv[2], f"{number}")])
    print(number, flush=True)
notes.close()
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_several_processes_write_at_once_and_none_loses_a_note(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    writers = [writer(path, name, 40) for name in "abc"]
    assert [process.communicate()[0].split()[-1] for process in writers] == ["39"] * 3
    assert [process.returncode for process in writers] == [0] * 3
    notes = Notes(path)
    notes.check_integrity()
    assert len(notes.latest("", 1000)) == 120
    notes.close()


@pytest.mark.parametrize("after", [1, 7, 20])
def test_what_was_acknowledged_is_there_after_a_kill(tmp_path: Path, after: int) -> None:
    path = tmp_path / "m.db"
    process = writer(path, "a", 100_000)
    assert process.stdout is not None
    for _ in range(after):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    told = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    acknowledged = int(told[-1]) + 1 if told else after
    notes = Notes(path)
    notes.check_integrity()
    there = {entry.text for entry in notes.latest("a", 10**6)}
    assert {f"note a {number}" for number in range(acknowledged)} <= there
    assert len(there) <= acknowledged + 1
    notes.close()


# The actor


async def memory(node: Node, tmp_path: Path, **options: Any) -> Ref:
    return await node.spawn(Memory, MemoryConfig(path=str(tmp_path / "m.db"), **options), name="memory")


async def texts_of(memory: Ref, query: str, session: str = "", limit: int = 5) -> list[str]:
    return [entry.text for entry in (await memory.ask(Recall(query, session, limit))).entries]


async def test_what_is_remembered_is_there_for_the_next_actor(node: Node, tmp_path: Path) -> None:
    first = await memory(node, tmp_path)
    one = await first.ask(Remember("the door code is 4711", "home", "k", ("code",)))
    assert not one.known
    await node.stop("memory")
    again = await memory(node, tmp_path)
    assert (await again.ask(Remember("the door code is 4711", "home", "k"))).known
    (entry,) = (await again.ask(Recall("door", "home"))).entries
    assert (entry.id, entry.text, entry.tags) == (one.id, "the door code is 4711", ("code",))
    assert (await again.ask(Forget("home", (one.id,)))).count == 1
    assert await texts_of(again, "door") == []


async def test_its_file_lies_in_the_data_folder_where_no_other_is_named(node: Node) -> None:
    ref = await node.spawn(Memory, name="memory")
    await ref.ask(Remember("x"))
    assert (Path(os.environ["CALLBOARD_DATA_DIR"]) / "memory" / "memory.db").exists()


async def test_many_at_once_are_all_kept(node: Node, tmp_path: Path) -> None:
    ref = await memory(node, tmp_path)
    ids: list[str] = []

    async def keep(number: int) -> None:
        ids.append((await ref.ask(Remember(f"note {number}", f"s{number % 3}"))).id)

    async with anyio.create_task_group() as group:
        for number in range(200):
            group.start_soon(keep, number)
    assert len(set(ids)) == 200
    assert len((await ref.ask(Recall("", limit=1000))).entries) == 200


async def test_what_is_no_note_is_refused_and_harms_nothing(node: Node, tmp_path: Path) -> None:
    ref = await memory(node, tmp_path, max_note_bytes=10)
    for text in ("x" * 11, "  "):
        with pytest.raises(NoteTooLarge):
            await ref.ask(Remember(text))
    await ref.ask(Remember("x" * 10))
    assert (await ref.ask(Recall("", limit=0))).entries == ()
    assert (await ref.ask(Recall("", limit=-5))).entries == ()


async def test_half_a_character_is_refused(tmp_path: Path) -> None:
    async with Node() as node:
        ref = await memory(node, tmp_path)
        with pytest.raises(MemoryFailed, match="Unicode"):
            await ref.ask(Remember("\ud800"))
        await ref.ask(Remember("fine"))


async def test_a_broken_file_fails_the_start_and_says_so(node: Node, tmp_path: Path) -> None:
    (tmp_path / "m.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(MemoryDamaged) as failed:
        await memory(node, tmp_path)
    assert "move the file away" in failed.value.hint


# By meaning

MEANINGS = {"car": (1.0, 0.1, 0.0), "automobile": (0.9, 0.2, 0.0), "banana": (0.0, 0.1, 1.0), "fruit": (0.0, 0.2, 0.9)}


class Embedder(Actor[NoConfig]):
    """Gives a text the vector of the first word that it knows; fails while `ill`; never takes a long text."""

    ill = False
    asked = 0

    @handler
    async def embed(self, message: Embed) -> Embeddings:
        type(self).asked += 1
        if self.ill:
            raise ModelError("the embedder is ill")
        if any(len(text) > 100 for text in message.texts):
            raise RequestInvalid("too long")
        vectors = tuple(
            next((vector for word, vector in MEANINGS.items() if word in text), (0.0, 1.0, 0.0))
            for text in message.texts
        )
        return Embeddings(vectors, 1)


@pytest.fixture
def embedder() -> type[Embedder]:
    return type("OwnEmbedder", (Embedder,), {})


async def with_vectors(path: Path, count: int, model: str = "") -> None:
    def seen() -> int:
        notes = Notes(path)
        try:
            return len(notes.latest("", 1000)) - len(notes.without_vector(model, 1000))
        finally:
            notes.close()

    with anyio.fail_after(20):
        while await anyio.to_thread.run_sync(seen) < count:
            await anyio.sleep(0.01)


async def test_notes_are_found_by_meaning_where_there_is_an_embedder(
    node: Node, tmp_path: Path, embedder: type[Embedder]
) -> None:
    await node.spawn(embedder, name="engine")
    ref = await memory(node, tmp_path, embedder="engine")
    for text in ("my car is red", "a banana a day", "nothing of the kind", "x" * 200 + " banana"):
        await ref.ask(Remember(text, "s"))
    await with_vectors(tmp_path / "m.db", 4)
    assert (await texts_of(ref, "automobile", "s"))[0] == "my car is red"
    assert (await texts_of(ref, "fruit", "s"))[0] == "a banana a day"
    assert (await texts_of(ref, "banana", "s"))[0] == "a banana a day"
    assert await texts_of(ref, "automobile", "other") == []


async def test_an_embedder_that_fails_loses_nothing_and_is_asked_again(
    node: Node, tmp_path: Path, embedder: type[Embedder]
) -> None:
    embedder.ill = True
    await node.spawn(embedder, name="engine")
    ref = await memory(node, tmp_path, embedder="engine")
    await ref.ask(Remember("my car is red"))
    assert await texts_of(ref, "car") == ["my car is red"]  # by words alone
    assert await texts_of(ref, "automobile") == []
    embedder.ill = False
    await texts_of(ref, "automobile")
    await with_vectors(tmp_path / "m.db", 1)
    assert await texts_of(ref, "automobile") == ["my car is red"]


async def test_another_model_embeds_all_notes_anew(node: Node, tmp_path: Path, embedder: type[Embedder]) -> None:
    await node.spawn(embedder, name="engine")
    ref = await memory(node, tmp_path, embedder="engine", embed_model="old")
    await ref.ask(Remember("my car is red"))
    await with_vectors(tmp_path / "m.db", 1, "old")
    await node.stop("memory")
    ref = await memory(node, tmp_path, embedder="engine", embed_model="new")
    await with_vectors(tmp_path / "m.db", 1, "new")
    assert await texts_of(ref, "automobile") == ["my car is red"]


def test_the_nearest_are_those_by_cosine_and_odd_ones_are_left_out() -> None:
    vectors = [Vector.of(1, (2.0, 0.0)), Vector.of(2, (1.0, 1.0)), Vector.of(3, (0.0, 0.0)), Vector(4, b"")]
    order = nearest(vectors, (1.0, 0.0), 2)
    assert order == {1: pytest.approx(1.0), 2: pytest.approx(0.7071, abs=1e-3)}
    assert nearest(vectors, (0.0, 0.0), 2) == {}
    assert nearest([], (1.0,), 2) == {}


def test_what_stands_high_in_both_orders_comes_first() -> None:
    assert list(fused([(1, 2, 3), (3, 1, 4)], 3)) == [1, 3, 2]
