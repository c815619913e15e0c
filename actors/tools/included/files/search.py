"""Find files by name and by what is in them.

Patterns come from a model: `regex` is used, which takes a time limit, since Python's own `re` can be made to run for
years and holds the interpreter while it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ...errors import ToolError
from ..optional import need
from .beneath import FileRefused, open_beneath
from .roots import Roots
from .text import encoding_of
from .walking import Deadline, Entry, glob_matcher, walk

MAX_PATTERN = 1000
MAX_LINE = 400
MAX_SEARCHED_BYTES = 16 << 20
SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Match:
    """`line` counts from 1; 0 where only the file's name was looked for."""

    path: str
    line: int = 0
    text: str = ""


@dataclass(slots=True)
class Found:
    """`complete`: whether everything was looked at. `skipped`: files that are binary or too large to search."""

    matches: list[Match] = field(default_factory=list)
    complete: bool = True
    num_files: int = 0
    skipped: int = 0


def search(
    roots: Roots,
    folder: str,
    glob: str,
    pattern: str,
    *,
    ignore_case: bool,
    hidden: bool,
    limit: int,
    deadline: Deadline,
) -> Found:
    """Files below `folder` that match `glob` and, unless `pattern` is empty, their lines that match it."""
    matches_glob = glob_matcher(glob, deadline)
    expression = compiled(pattern, ignore_case) if pattern else None
    found = Found()
    for name, prefix, descriptor in _starts(roots, folder):
        try:
            for entry in walk(descriptor, deadline, hidden=hidden):
                if entry.is_folder or not matches_glob(entry.path):
                    continue
                found.num_files += 1
                path = "/".join(part for part in (name, prefix, entry.path) if part)
                if expression is None:
                    found.matches.append(Match(path))
                else:
                    _search_file(descriptor, entry, path, expression, found, limit, deadline)
                if len(found.matches) >= limit:
                    found.complete = False
                    return found
        finally:
            os.close(descriptor)
        if deadline.over:
            found.complete = False
            break
    return found


def _starts(roots: Roots, folder: str) -> Iterator[tuple[str, str, int]]:
    """Root, folder below it, and a descriptor that the caller closes. An empty folder is all roots."""
    if folder in ("", "."):
        for name in roots.names:
            yield name, "", roots.open_root(name)
        return
    name, below = roots.place(folder)
    yield name, below, roots.open(folder, directory=True)


def compiled(pattern: str, ignore_case: bool = False) -> Any:
    """Raises ToolError where it is no regular expression."""
    if len(pattern) > MAX_PATTERN:
        raise ToolError(f"the regular expression is longer than {MAX_PATTERN} characters")
    regex = need("regex", "tools", "searching in files")
    try:
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except regex.error as error:
        raise ToolError(
            f"'{pattern}' is no regular expression: {error}", hint="put a backslash before characters meant literally"
        ) from error


def _search_file(
    folder: int, entry: Entry, path: str, expression: Any, found: Found, limit: int, deadline: Deadline
) -> None:
    if entry.size > MAX_SEARCHED_BYTES:
        found.skipped += 1
        return
    try:
        descriptor = open_beneath(folder, entry.path)
    except FileRefused:
        found.skipped += 1
        return
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_SEARCHED_BYTES)
    encoding = encoding_of(data)
    if encoding is None:
        found.skipped += 1
        return
    for number, line in enumerate(data.decode(encoding, "replace").splitlines(), 1):
        if deadline.over:
            return
        try:
            hit = expression.search(line, timeout=max(deadline.left, 0.001), concurrent=True)
        except TimeoutError:
            raise ToolError(
                f"the regular expression takes too long on line {number} of {path}",
                hint="avoid repetitions within repetitions, such as (a+)+",
            ) from None
        if hit is not None:
            found.matches.append(Match(path, number, _around(line, hit.start())))
            if len(found.matches) >= limit:
                return


def _around(line: str, position: int) -> str:
    """The line, or what is around the match where the line is long."""
    if len(line) <= MAX_LINE:
        return line
    start = max(0, min(position - MAX_LINE // 4, len(line) - MAX_LINE))
    return f"{'…' if start else ''}{line[start : start + MAX_LINE]}…"
