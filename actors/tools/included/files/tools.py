"""The set `files`: tools `list`, `search` and `read`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import msgspec

from ...outcome import Reply
from ...tool import Tool, ToolContext
from ...values import Audio, File, Image
from .read import TextPart
from .read import read as read_file
from .roots import Roots
from .search import MAX_PATTERN, SECONDS, Match
from .search import search as search_files
from .walking import Deadline, walk

Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class FilesOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`roots`: folders that may be read, by the name that paths begin with."""

    roots: dict[str, str] = {}


@dataclass(frozen=True)
class Listed:
    path: str
    kind: str
    size: int
    modified: str


@dataclass(frozen=True)
class Listing:
    entries: list[Listed]
    complete: bool


@dataclass(frozen=True)
class SearchResult:
    """`complete` is false where there may be more than was found."""

    matches: list[Match]
    num_files: int
    skipped: int
    complete: bool


@dataclass(frozen=True)
class ReadResult:
    """`text` with its lines, or a medium where the file is none."""

    path: str
    text: str = ""
    first_line: int = 0
    last_line: int = 0
    num_lines: int = 0
    more: bool = False
    file: File | None = None
    image: Image | None = None
    audio: Audio | None = None


class _OfRoots(Tool):
    """What the tools of the set share: the open folders."""

    def __init__(self, options: FilesOptions) -> None:
        self._options = options

    def setup(self) -> None:
        self.roots = Roots(self._options.roots)

    def close(self) -> None:
        self.roots.close()


class ListFiles(_OfRoots, name="list", read_only=True, idempotent=True, open_world=False, concurrency=4, version="1"):
    def run(
        self, context: ToolContext, folder: str = "", depth: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    ) -> Listing:
        """List what is in a folder: names, kinds, sizes and times of change. Without a folder: the folders there are.

        Args:
            folder: A folder, as `root/path`. Empty: all roots.
            depth: How many levels to go down.
        """
        if folder in ("", ".") and len(self.roots.names) > 1 and depth == 1:
            return Listing([Listed(name, "folder", 0, "") for name in self.roots.names], True)
        deadline = Deadline(SECONDS, lambda: context.cancelled)
        name, below = self.roots.place(folder)
        prefix = "/".join(part for part in (name, below) if part)
        found: list[Listed] = []
        descriptor = self.roots.open(folder, directory=True)
        try:
            for entry in walk(descriptor, deadline, hidden=True, depth=depth):
                if len(found) == 1000:
                    return Listing(found, False)
                changed = datetime.fromtimestamp(entry.mtime_ns / 1e9, UTC).isoformat(timespec="seconds")
                kind = "folder" if entry.is_folder else "file"
                found.append(Listed(f"{prefix}/{entry.path}", kind, entry.size, changed))
        finally:
            os.close(descriptor)
        return Listing(found, not deadline.over)


class SearchFiles(
    _OfRoots, name="search", read_only=True, idempotent=True, open_world=False, concurrency=4, version="1"
):
    def run(
        self,
        context: ToolContext,
        glob: str = "**",
        pattern: Annotated[str, msgspec.Meta(max_length=MAX_PATTERN)] = "",
        folder: str = "",
        ignore_case: bool = False,
        hidden: bool = False,
        limit: Count = 100,
    ) -> SearchResult:
        """Find files by name, and lines in them by a regular expression.

        Args:
            glob: Which files, by their path: `**/*.py`, `docs/*.md`, `*.{yml,yaml}`.
            pattern: A regular expression that a line matches. Empty: find names only.
            folder: Where to begin, as `root/path`. Empty: everywhere.
            ignore_case: Whether A and a are the same.
            hidden: Whether to look at names that begin with a dot.
            limit: The most matches to give back.
        """
        deadline = Deadline(SECONDS, lambda: context.cancelled)
        found = search_files(
            self.roots, folder, glob, pattern, ignore_case=ignore_case, hidden=hidden, limit=limit, deadline=deadline
        )
        result = SearchResult(found.matches, found.num_files, found.skipped, found.complete)
        return Reply(result, _search_text(result))  # pyright: ignore[reportReturnType]


class ReadFile(_OfRoots, name="read", read_only=True, idempotent=True, open_world=False, concurrency=4, version="1"):
    def run(
        self,
        path: str,
        first_line: Annotated[int, msgspec.Meta(ge=1)] = 1,
        num_lines: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 2000,
        max_chars: Annotated[int, msgspec.Meta(ge=100, le=1_000_000)] = 100_000,
    ) -> ReadResult:
        """Read a text file, or some lines of it. An image, a sound or another file is given as such.

        Args:
            path: The file, as `root/path`.
            first_line: The line to begin at, from 1.
            num_lines: The most lines to give back.
            max_chars: The most characters to give back.
        """
        found = read_file(self.roots, path, first_line, num_lines, max_chars)
        if isinstance(found, File):
            result = ReadResult(
                path,
                image=found if isinstance(found, Image) else None,
                audio=found if isinstance(found, Audio) else None,
                file=found if not isinstance(found, (Image, Audio)) else None,
            )
            return Reply(result, f"{path}: {shown(found)}")  # pyright: ignore[reportReturnType]
        result = ReadResult(path, found.text, found.first_line, found.last_line, found.num_lines, found.more)
        return Reply(result, _read_text(found))  # pyright: ignore[reportReturnType]


def shown(file: File) -> str:
    """A medium in a text for a model."""
    return f"[{file.kind.value} {file.name}, {file.mime}, {file.size} bytes]"


def _read_text(found: TextPart) -> str:
    if found.first_line == 1 and not found.more:
        return found.text
    return f"{found.text}\n[lines {found.first_line} to {found.last_line} of {found.num_lines}]"


def _search_text(found: SearchResult) -> str:
    lines = [f"{match.path}:{match.line}: {match.text}" if match.line else match.path for match in found.matches]
    if not lines:
        lines = [f"nothing found in {found.num_files} files"]
    return "\n".join(lines if found.complete else [*lines, "[there may be more]"])


def tools(options: FilesOptions) -> list[Tool]:
    """The set, over the folders of its options."""
    return [ListFiles(options), SearchFiles(options), ReadFile(options)]
