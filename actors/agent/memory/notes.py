"""Notes in a SQLite file, found again by their words (FTS5, BM25) and, where vectors are kept, by their meaning.

Several processes may write to one file: write-ahead log, one writer at a time, who waits for its turn. A commit is on
the disk when it returns (`synchronous=FULL`), so what was acknowledged is there after anything. Blocking: the actor
calls it in a thread.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from ....runtime.files import private_folder
from ....schemas.agent import MemoryEntry, Remember, Remembered
from ...models.meaning import Vector
from .errors import MemoryDamaged, MemoryFailed, MemoryFull
from .words import indexed, match_of

# How long a writer waits for another process's turn to end.
BUSY_S = 30.0
VERSION = 1

_TABLES = """
CREATE TABLE notes (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    session TEXT NOT NULL,
    key TEXT,
    text TEXT NOT NULL,
    tags TEXT NOT NULL,
    at REAL NOT NULL,
    UNIQUE (session, key)
);
CREATE INDEX notes_by_time ON notes (session, at);
CREATE VIRTUAL TABLE word_index USING fts5 (words, tags, tokenize = 'porter unicode61 remove_diacritics 2');
CREATE TABLE vectors (
    number INTEGER PRIMARY KEY REFERENCES notes (number) ON DELETE CASCADE,
    model TEXT NOT NULL,
    vector BLOB NOT NULL
);
"""


class Notes:
    """One file. Made with its folder where it is not there. Not for several threads at once.

    Raises MemoryDamaged for a file that is none of ours or broken, MemoryFull where the disk is, MemoryFailed else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _typed(path):
            private_folder(path.parent)
            new = not path.exists()
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            if new:
                os.chmod(path, 0o600)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._make_tables()

    def close(self) -> None:
        self._db.close()

    def remember(self, wanted: Sequence[Remember]) -> list[Remembered]:
        """Keep all of them or, with an error, none."""
        with self._writing():
            return [self._remember(one) for one in wanted]

    def _remember(self, wanted: Remember) -> Remembered:
        key = wanted.key or None
        if key is not None:
            row = self._db.execute(
                "SELECT id FROM notes WHERE session = ? AND key = ?", (wanted.session, key)
            ).fetchone()
            if row is not None:
                return Remembered(row[0], known=True)
        id = uuid.uuid4().hex
        tags = msgspec.json.encode(wanted.tags).decode()
        cursor = self._db.execute(
            "INSERT INTO notes (id, session, key, text, tags, at) VALUES (?, ?, ?, ?, ?, ?)",
            (id, wanted.session, key, wanted.text, tags, time.time()),
        )
        self._db.execute(
            "INSERT INTO word_index (rowid, words, tags) VALUES (?, ?, ?)",
            (cursor.lastrowid, indexed(wanted.text), indexed(" ".join(wanted.tags))),
        )
        return Remembered(id)

    def forget(self, session: str, ids: Sequence[str]) -> int:
        """Remove those of `ids` that are in the session, or all of it. Returns how many there were."""
        with self._writing():
            if ids:
                numbers = [
                    row[0]
                    for id in dict.fromkeys(ids)
                    for row in self._db.execute("SELECT number FROM notes WHERE session = ? AND id = ?", (session, id))
                ]
            else:
                numbers = [row[0] for row in self._db.execute("SELECT number FROM notes WHERE session = ?", (session,))]
            rows = [(number,) for number in numbers]
            self._db.executemany("DELETE FROM word_index WHERE rowid = ?", rows)
            self._db.executemany("DELETE FROM notes WHERE number = ?", rows)
        return len(numbers)

    def latest(self, session: str, limit: int) -> list[MemoryEntry]:
        """The newest first."""
        with _typed(self.path):
            rows = self._db.execute(
                "SELECT id, text, at, tags, 0.0 FROM notes WHERE ? IN ('', session) "
                "ORDER BY at DESC, number DESC LIMIT ?",
                (session, limit),
            ).fetchall()
        return [_entry(row) for row in rows]

    def by_words(self, query: str, session: str, limit: int) -> dict[int, float]:
        """Note numbers with their BM25 scores (higher is better), best first."""
        match = match_of(query)
        if not match:
            return {}
        with _typed(self.path):
            rows = self._db.execute(
                "SELECT notes.number, -bm25(word_index, 1.0, 0.5) AS score "
                "FROM word_index JOIN notes ON notes.number = word_index.rowid "
                "WHERE word_index MATCH ? AND ? IN ('', notes.session) ORDER BY score DESC, notes.number DESC LIMIT ?",
                (match, session, limit),
            ).fetchall()
        return dict(rows)

    def entries(self, scores: dict[int, float]) -> list[MemoryEntry]:
        """The notes of those numbers that are still there, in the same order."""
        found: list[MemoryEntry] = []
        with _typed(self.path):
            for number, score in scores.items():
                row = self._db.execute(
                    "SELECT id, text, at, tags, ? FROM notes WHERE number = ?", (score, number)
                ).fetchone()
                if row is not None:
                    found.append(_entry(row))
        return found

    # Vectors

    def without_vector(self, model: str, limit: int) -> list[tuple[int, str]]:
        """Notes, by number, that have no vector of that model, with their texts; the newest first."""
        with _typed(self.path):
            return self._db.execute(
                "SELECT number, text FROM notes WHERE NOT EXISTS "
                "(SELECT 1 FROM vectors WHERE vectors.number = notes.number AND model = ?) "
                "ORDER BY number DESC LIMIT ?",
                (model, limit),
            ).fetchall()

    def put_vectors(self, model: str, vectors: Iterable[Vector]) -> None:
        """Those of notes that were forgotten meanwhile are let go."""
        with self._writing():
            self._db.executemany(
                "INSERT OR REPLACE INTO vectors (number, model, vector) "
                "SELECT number, ?, ? FROM notes WHERE number = ?",
                [(model, one.vector, one.number) for one in vectors],
            )

    def vectors(self, model: str, session: str) -> list[Vector]:
        with _typed(self.path):
            rows = self._db.execute(
                "SELECT notes.number, vector FROM vectors JOIN notes ON notes.number = vectors.number "
                "WHERE model = ? AND ? IN ('', session)",
                (model, session),
            ).fetchall()
        return [Vector(*row) for row in rows]

    def check_integrity(self) -> None:
        """Raises MemoryDamaged unless the file is whole and every note is indexed."""
        with _typed(self.path):
            (said,) = self._db.execute("PRAGMA integrity_check").fetchone()
            self._db.execute("INSERT INTO word_index (word_index) VALUES ('integrity-check')")
            (missing,) = self._db.execute(
                "SELECT count(*) FROM notes WHERE number NOT IN (SELECT rowid FROM word_index)"
            ).fetchone()
            (spare,) = self._db.execute(
                "SELECT count(*) FROM word_index WHERE rowid NOT IN (SELECT number FROM notes)"
            ).fetchone()
        if said != "ok" or missing or spare:
            raise MemoryDamaged(f"{self.path}: {said}; {missing} notes are not indexed, {spare} entries are of none")

    def _make_tables(self) -> None:
        with self._writing():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == VERSION:
                return
            (tables,) = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version or tables:
                raise MemoryDamaged(
                    f"{self.path} is no memory of this release (version {version})",
                    hint="give the memory actor another `path`",
                )
            for statement in _TABLES.split(";\n"):
                if statement.strip():
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that has the right to write from its start, so that two never find out later."""
        with _typed(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def _typed(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = (error.sqlite_errorcode or 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise MemoryFull(f"there is no room for {path}") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise MemoryDamaged(f"{path} is broken: {error}") from error
        raise MemoryFailed(f"{path}: {error}") from error
    except OSError as error:
        raise MemoryFailed(f"{path}: {error.strerror}") from error


def _entry(row: tuple[str, str, float, str, float]) -> MemoryEntry:
    id, text, at, tags, score = row
    return MemoryEntry(id, text, at, score, msgspec.json.decode(tags, type=tuple[str, ...]))
