"""What is below a folder, through descriptors and never through symbolic links."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...errors import ToolError
from ..optional import need

MAX_DEPTH = 64
MAX_ENTRIES = 500_000
_MAX_GLOB = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """`path` is relative to the folder that the walk began at, with `/`."""

    path: str
    is_folder: bool
    size: int
    mtime_ns: int
    inode: int = 0


class Deadline:
    """Time for a piece of work. `over` is whether it is up, or nobody waits for the work any more."""

    def __init__(self, seconds: float, given_up: Callable[[], bool] = lambda: False) -> None:
        self._end = time.monotonic() + seconds
        self._given_up = given_up

    @property
    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._end or self._given_up()


def walk(folder: int, deadline: Deadline, *, hidden: bool = False, depth: int = MAX_DEPTH) -> Iterator[Entry]:
    """Files and folders below an open folder, by name, a folder before what is in it.

    Links and special files are left out; a folder that cannot be read is passed over. Ends early when time is up, which
    the caller sees by `deadline.over`. Raises ToolError beyond MAX_ENTRIES.
    """
    for count, entry in enumerate(_below(folder, "", deadline, hidden, depth)):
        if count == MAX_ENTRIES:
            raise ToolError(f"more than {MAX_ENTRIES:,} files", hint="name a folder further down")
        yield entry


def _below(folder: int, prefix: str, deadline: Deadline, hidden: bool, depth: int) -> Iterator[Entry]:
    with os.scandir(folder) as scanned:
        entries = sorted((entry for entry in scanned if hidden or not entry.name.startswith(".")), key=_name)
    for entry in entries:
        if deadline.over:
            return
        try:
            if entry.is_symlink():
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            if not is_folder and not entry.is_file(follow_symlinks=False):
                continue
            found = entry.stat(follow_symlinks=False)
        except OSError:
            continue  # gone since the folder was read
        path = prefix + _printable(entry.name)
        yield Entry(path, is_folder, 0 if is_folder else found.st_size, found.st_mtime_ns, found.st_ino)
        if is_folder and depth > 1:
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(entry.name, flags, dir_fd=folder)
            except OSError:
                continue  # not to be read, or no folder any more
            try:
                yield from _below(below, path + "/", deadline, hidden, depth - 1)
            finally:
                os.close(below)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _printable(name: str) -> str:
    """A name that is no UTF-8 has no form in JSON: its bytes are shown, and it cannot be asked for."""
    return name.encode("utf-8", "replace").decode() if any("\ud800" <= c <= "\udfff" for c in name) else name


def glob_matcher(glob: str, deadline: Deadline) -> Callable[[str], bool]:
    """Whether relative paths match a shell's pattern: `**` stands for any folders, `*` and `?` stay within one name.

    A pattern without a slash is for names anywhere. Raises ToolError, also where a match takes until the deadline.
    """
    if len(glob) > _MAX_GLOB:
        raise ToolError(f"the glob is longer than {_MAX_GLOB} characters", hint="use one like **/*.py")
    regex = need("regex", "tools", "searching for files")
    try:
        pattern = regex.compile(_as_expression(glob if "/" in glob else f"**/{glob}"), regex.DOTALL)
    except regex.error as error:
        raise ToolError(f"'{glob}' is no glob: {error}") from error

    def matches(path: str) -> bool:
        try:
            return pattern.fullmatch(path, timeout=max(deadline.left, 0.001), concurrent=True) is not None
        except TimeoutError:
            raise ToolError(f"the glob '{glob}' takes too long to match", hint="use fewer stars") from None

    return matches


def _as_expression(glob: str) -> str:
    while "**/**" in glob:
        glob = glob.replace("**/**", "**")
    found, i = "", 0
    while i < len(glob):
        if glob.startswith("**/", i):
            found, i = found + "(?:.*/)?", i + 3
        elif glob.startswith("**", i):
            found, i = found + ".*", i + 2
        elif glob[i] == "*":
            found, i = found + "[^/]*", i + 1
        elif glob[i] == "?":
            found, i = found + "[^/]", i + 1
        elif glob[i] == "[" and (end := glob.find("]", i + 2)) > 0:
            inside = glob[i + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            found, i = found + f"(?!/)[{'^' + inside[1:] if inside[0] == '!' else inside}]", end + 1
        elif glob[i] == "{" and (end := glob.find("}", i)) > 0:
            choices = "|".join(re.escape(choice) for choice in glob[i + 1 : end].split(","))
            found, i = found + f"(?:{choices})", end + 1
        else:
            found, i = found + re.escape(glob[i]), i + 1
    return found
