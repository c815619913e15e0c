"""The set `documents`: tools `search` and `refresh`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from .....runtime.errors import CallboardError, Cancelled, ConfigError, MissingExtra
from .....runtime.folders import Paths
from ...context import ToolContext
from ...outcome import Reply
from ...tool import Tool
from ..files.roots import Roots
from ..files.walking import Deadline
from .index import Index, Passage, Refreshed
from .meaning import Embedder

# A search looks for changes first, but does not keep anybody waiting for long.
SEARCH_REFRESH_S = 5.0
REFRESH_S = 540.0


class DocumentsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`roots`: folders with documents, by the name that citations begin with. `index`: the index's file; empty: one in
    the cache folder. `engine`: the actor that is asked for vectors, so that documents are found by their meaning too;
    `embed_model`: the name that it knows its model by."""

    roots: dict[str, str] = {}
    index: str = ""
    engine: str = ""
    embed_model: str = ""


@dataclass(frozen=True)
class Cited:
    """`citation`: where it is, for whoever reads the answer."""

    citation: str
    path: str
    unit: str
    first: int
    last: int
    heading: str
    text: str
    score: float


@dataclass(frozen=True)
class SearchResult:
    """`complete` is false while files are still to be indexed. `by_meaning`: whether they were looked for so too."""

    passages: list[Cited]
    complete: bool
    by_meaning: bool = False


class Shared:
    """The index, which the tools of the set share; it is opened when first used."""

    def __init__(self, options: DocumentsOptions) -> None:
        self._options = options
        self._open: Index | None = None
        self._roots: Roots | None = None
        self.embedder = Embedder(options.engine, options.embed_model) if options.engine else None

    def index(self) -> Index:
        if self._open is None:
            if not self._options.roots:
                raise ConfigError(
                    "there are no documents",
                    hint='`[tools.documents.roots]` of callboard.toml names them: notes = "/home/me/notes"',
                )
            self._roots = Roots(self._options.roots)
            self._open = Index(self._place(), self._roots)
        return self._open

    def _place(self) -> Path:
        if self._options.index:
            return Path(self._options.index).expanduser()
        known = hashlib.sha256(msgspec.json.encode(sorted(self._options.roots.items()))).hexdigest()[:16]
        return Paths.find().cache / "documents" / f"{known}.sqlite"

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
        if self._roots is not None:
            self._roots.close()


class _OfIndex(Tool):
    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def setup(self) -> None:
        self.index = self._shared.index()

    def close(self) -> None:
        self._shared.close()


class Search(_OfIndex, name="search", read_only=True, idempotent=True, open_world=False, version="1"):
    def run(
        self,
        context: ToolContext,
        query: str,
        limit: Annotated[int, msgspec.Meta(ge=1, le=50)] = 6,
        folder: str = "",
    ) -> SearchResult:
        """Find passages in the user's documents. Each comes with its file and page or lines: cite them in answers.

        Args:
            query: Words that the passage has; a phrase in double quotes.
            limit: The most passages to give back.
            folder: Only documents whose path begins so, as `root/path`.
        """
        deadline = Deadline(SEARCH_REFRESH_S, lambda: context.cancelled)
        refreshed = self.index.refresh(deadline)
        scores, note, embedder = None, "", self._shared.embedder
        if embedder is not None:
            try:
                refreshed.complete &= embedder.embed_passages(self.index, context, deadline)
                scores = embedder.search(self.index, context, query, limit, folder)
            except (Cancelled, MissingExtra):
                raise
            except CallboardError as error:
                note = f"(found by words alone: {error})"
        by_meaning = scores is not None
        if scores is None:
            scores = self.index.by_words(query, limit, folder)
        found = [_cited(passage) for passage in self.index.passages(scores)]
        text = _text(found, refreshed, note)
        return Reply(SearchResult(found, refreshed.complete, by_meaning), text)  # pyright: ignore[reportReturnType]


class Refresh(
    _OfIndex,
    name="refresh",
    read_only=False,
    destructive=False,
    idempotent=True,
    open_world=False,
    timeout=600.0,
    version="1",
):
    def run(self, context: ToolContext) -> Refreshed:
        """Bring the index of the documents up to date. Searching does so too, as far as a few seconds go."""
        deadline = Deadline(REFRESH_S, lambda: context.cancelled)
        done = self.index.refresh(deadline)
        if self._shared.embedder is not None:
            done.complete &= self._shared.embedder.embed_passages(self.index, context, deadline)
        return done


def _cited(passage: Passage) -> Cited:
    return Cited(
        passage.citation,
        passage.path,
        passage.unit,
        passage.first,
        passage.last,
        passage.heading,
        passage.text,
        passage.score,
    )


def _text(found: list[Cited], refreshed: Refreshed, note: str) -> str:
    parts = [f"[{number}] {passage.citation}\n{passage.text}" for number, passage in enumerate(found, 1)]
    if not parts:
        parts = [f"nothing found in {refreshed.num_files} documents"]
    if not refreshed.complete:
        parts.append("(documents are still being indexed: there may be more)")
    if note:
        parts.append(note)
    return "\n\n".join(parts)


def tools(options: DocumentsOptions) -> list[Tool]:
    """The set, over the folders of its options."""
    shared = Shared(options)
    return [Search(shared), Refresh(shared)]
