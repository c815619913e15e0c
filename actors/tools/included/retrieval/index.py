"""The index: passages in SQLite's FTS5, ranked by BM25 (Robertson and Zaragoza, 2009, with FTS5's k1 = 1.2, b = 0.75).

It follows the folders: a file is read again when its time or size has changed, and indexed again when its SHA-256 has.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ....models.meaning import Vector
from ...errors import ToolError
from ..files.beneath import FileRefused, open_beneath
from ..files.roots import Roots
from ..files.walking import Deadline, Entry, walk
from .chunks import ENDINGS, chunks_of

VERSION = 2
MAX_FILE_BYTES = 64 << 20
_SCHEMA = """
CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, digest TEXT, problem TEXT) WITHOUT ROWID;
CREATE TABLE chunks (id INTEGER PRIMARY KEY, path TEXT NOT NULL, first INTEGER, last INTEGER, by_page INTEGER);
CREATE INDEX chunks_of_path ON chunks (path);
CREATE TABLE vectors (id INTEGER, model TEXT, vector BLOB NOT NULL, PRIMARY KEY (id, model)) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(text, heading, path, tokenize = "unicode61 remove_diacritics 2");
"""
# A word in a heading or in a file's name says more than one in the text.
_WEIGHTS = "1.0, 3.0, 2.0"
_MAX_WORDS = 32


@dataclass(frozen=True, slots=True)
class Passage:
    """`first` and `last`: lines, or pages where `unit` is "page". `score`: higher is better."""

    path: str
    unit: str
    first: int
    last: int
    heading: str
    text: str
    score: float

    @property
    def citation(self) -> str:
        """`docs/guide.md, lines 3 to 9`."""
        if self.first == self.last:
            return f"{self.path}, {self.unit} {self.first}"
        return f"{self.path}, {self.unit}s {self.first} to {self.last}"


@dataclass(slots=True)
class Refreshed:
    """What has changed since the last time. `complete`: whether there was time for everything."""

    num_files: int = 0
    added: int = 0
    removed: int = 0
    unchanged: int = 0
    problems: int = 0
    complete: bool = True


class Index:
    """One index file over some roots. One call at a time; from any thread."""

    def __init__(self, path: Path, roots: Roots) -> None:
        self._roots = roots
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._connection = _opened(path)

    def close(self) -> None:
        self._connection.close()

    def refresh(self, deadline: Deadline) -> Refreshed:
        """Bring the index up to date with the folders; what there was no time for comes at the next call."""
        done = Refreshed()
        with self._lock:
            known = {
                row[0]: row[1:] for row in self._connection.execute("SELECT path, size, mtime_ns, digest FROM files")
            }
            seen: set[str] = set()
            for name in self._roots.names:
                root = self._roots.open_root(name)
                try:
                    for entry in walk(root, deadline):
                        if entry.is_folder or not entry.path.lower().endswith(ENDINGS):
                            continue
                        path = f"{name}/{entry.path}"
                        seen.add(path)
                        self._file(root, path, entry, known.get(path), done, deadline)
                finally:
                    os.close(root)
            done.complete = not deadline.over
            done.num_files = len(seen)
            # Only a walk that was not cut short knows what is gone.
            if done.complete:
                for path in known.keys() - seen:
                    with self._connection:
                        self._remove(path)
                    done.removed += 1
        return done

    def _file(
        self,
        root: int,
        path: str,
        entry: Entry,
        known: tuple[int, int, str] | None,
        done: Refreshed,
        deadline: Deadline,
    ) -> None:
        if known is not None and known[:2] == (entry.size, entry.mtime_ns):
            done.unchanged += 1
            return
        problem, digest, data = "", "", b""
        try:
            data = _read(root, entry)
            digest = hashlib.sha256(data).hexdigest()
            if known is not None and known[2] == digest:
                with self._connection:
                    self._connection.execute(
                        "UPDATE files SET size = ?, mtime_ns = ? WHERE path = ?", (entry.size, entry.mtime_ns, path)
                    )
                done.unchanged += 1
                return
            chunks = chunks_of(entry.path, data, lambda: deadline.over)
        except ToolError as error:
            problem, chunks = str(error), []
        if deadline.over:
            # A PDF may have been cut short: as it is now it must not count as known.
            return
        with self._connection:
            self._remove(path)
            self._connection.execute(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?)", (path, entry.size, entry.mtime_ns, digest, problem)
            )
            for chunk in chunks:
                cursor = self._connection.execute(
                    "INSERT INTO chunks (path, first, last, by_page) VALUES (?, ?, ?, ?)",
                    (path, chunk.first, chunk.last, chunk.by_page),
                )
                self._connection.execute(
                    "INSERT INTO words (rowid, text, heading, path) VALUES (?, ?, ?, ?)",
                    (cursor.lastrowid, chunk.text, chunk.heading, path),
                )
        done.added += 1
        done.problems += bool(problem)

    def _remove(self, path: str) -> None:
        self._connection.execute("DELETE FROM vectors WHERE id IN (SELECT id FROM chunks WHERE path = ?)", (path,))
        self._connection.execute("DELETE FROM words WHERE rowid IN (SELECT id FROM chunks WHERE path = ?)", (path,))
        self._connection.execute("DELETE FROM chunks WHERE path = ?", (path,))
        self._connection.execute("DELETE FROM files WHERE path = ?", (path,))

    def search(self, query: str, limit: int, under: str = "") -> list[Passage]:
        """The passages whose words fit best, best first. Raises ToolError."""
        return self.passages(self.by_words(query, limit, under))

    def by_words(self, query: str, limit: int, under: str = "") -> dict[int, float]:
        """Passages by number, with their scores. All words first; where no passage has all, any of them.

        Raises ToolError.
        """
        words = query_words(query)
        if not words:
            raise ToolError("the query has no words", hint="name what the passage says")
        found = self._matching(" ".join(words), limit, under)
        if len(found) < limit:
            some = self._matching(" OR ".join(words), limit, under)
            found |= {number: score for number, score in some.items() if number not in found}
        return dict(list(found.items())[:limit])

    def _matching(self, expression: str, limit: int, under: str) -> dict[int, float]:
        with self._lock:
            rows = self._connection.execute(
                f"SELECT chunks.id, -bm25(words, {_WEIGHTS}) AS score "
                "FROM words JOIN chunks ON chunks.id = words.rowid "
                "WHERE words MATCH ? AND substr(chunks.path, 1, length(?)) = ? ORDER BY score DESC, chunks.id LIMIT ?",
                (expression, under, under, limit),
            ).fetchall()
        return dict(rows)

    def passages(self, scores: dict[int, float]) -> list[Passage]:
        """Those of these numbers that are still there, in the same order."""
        found: list[Passage] = []
        for number, score in scores.items():
            with self._lock:
                row = self._connection.execute(
                    "SELECT chunks.path, by_page, first, last, heading, text FROM words "
                    "JOIN chunks ON chunks.id = words.rowid WHERE chunks.id = ?",
                    (number,),
                ).fetchone()
            if row is not None:
                path, by_page, first, last, heading, text = row
                unit = "page" if by_page else "line"
                found.append(Passage(path, unit, first, last, heading, text, round(score, 4)))
        return found

    # Vectors

    def without_vector(self, model: str, limit: int) -> list[tuple[int, str]]:
        """Passages, by number, that have no vector of that model, with their texts."""
        with self._lock:
            return self._connection.execute(
                "SELECT chunks.id, text FROM chunks JOIN words ON words.rowid = chunks.id WHERE NOT EXISTS "
                "(SELECT 1 FROM vectors WHERE vectors.id = chunks.id AND model = ?) ORDER BY chunks.id LIMIT ?",
                (model, limit),
            ).fetchall()

    def put_vectors(self, model: str, vectors: Sequence[Vector]) -> None:
        """Those of passages that are gone meanwhile are let go."""
        with self._lock, self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO vectors (id, model, vector) SELECT id, ?, ? FROM chunks WHERE id = ?",
                [(model, one.vector, one.number) for one in vectors],
            )

    def vectors(self, model: str, under: str = "") -> list[Vector]:
        with self._lock:
            rows = self._connection.execute(
                "SELECT chunks.id, vector FROM vectors JOIN chunks ON chunks.id = vectors.id "
                "WHERE model = ? AND substr(chunks.path, 1, length(?)) = ?",
                (model, under, under),
            ).fetchall()
        return [Vector(*row) for row in rows]

    def problems(self) -> list[tuple[str, str]]:
        """Files that could not be read, with the reason."""
        with self._lock:
            return self._connection.execute(
                "SELECT path, problem FROM files WHERE problem <> '' ORDER BY path LIMIT 100"
            ).fetchall()


def query_words(query: str) -> list[str]:
    """Words, each in quotes, so that nothing in a query is an operator of FTS5; a part in quotes stays a phrase."""
    found: list[str] = []
    for phrase, word in re.findall(r'"([^"]*)"|([^\s"]+)', query):
        parts = re.findall(r"\w+", phrase or word)
        if parts:
            found.append('"' + " ".join(parts) + '"')
    return list(dict.fromkeys(found))[:_MAX_WORDS]


def _read(root: int, entry: Entry) -> bytes:
    if entry.size > MAX_FILE_BYTES:
        raise ToolError(f"it has more than {MAX_FILE_BYTES:,} bytes")
    try:
        descriptor = open_beneath(root, entry.path)
    except FileRefused as error:
        raise ToolError(str(error)) from error
    with os.fdopen(descriptor, "rb") as file:
        return file.read(MAX_FILE_BYTES)


def _opened(path: Path) -> sqlite3.Connection:
    """The index at `path`; one of another version or a damaged one is made anew, since the folders hold everything."""
    for attempt in range(2):
        connection = sqlite3.connect(path, check_same_thread=False, timeout=30.0)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == VERSION:
                return connection
            if version == 0 and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
                path.chmod(0o600)
                return connection
        except sqlite3.DatabaseError as error:
            if attempt:
                connection.close()
                raise ToolError(f"the index {path} cannot be made: {error}") from error
        connection.close()
        for leftover in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
            leftover.unlink(missing_ok=True)
    raise ToolError(f"the index {path} cannot be made")
