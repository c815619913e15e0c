"""What the host reads from a scratch folder that hostile code has filled. Nothing is followed, nothing is believed.

Every file is opened beneath the folder's own descriptor with no symbolic link, no other mount and no way up allowed,
must be a plain file, and is copied up to a bound. All processes inside stand still or are gone meanwhile.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import linux
from .results import OutFile

_COPY = 1 << 20
_MOST_LEFT_OUT = 50
_MOST_DEPTH = 32
_MOST_NAME = 200


@dataclass
class Bounds:
    """How much may still come back."""

    bytes: int
    files: int
    file_bytes: int


# A file's identity and when it changed last: what tells a new or changed file from one that was there before.
Stamp = tuple[int, int, int, int]


@dataclass
class Found:
    files: list[OutFile] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, name: str, why: str) -> None:
        if len(self.left_out) < _MOST_LEFT_OUT:
            self.left_out.append((name, why))


def stamps(scratch: int, most: int) -> dict[str, Stamp]:
    """Every plain file below `work` as it is now; at most that many."""
    found: dict[str, Stamp] = {}
    for name, entry in _walk(scratch, most):
        if not isinstance(entry, OSError) and stat.S_ISREG(entry.st_mode):
            found[name] = _stamp(entry)
    return found


def _stamp(entry: os.stat_result) -> Stamp:
    return entry.st_ino, entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns


def collect(scratch: int, before: dict[str, Stamp], into: Path, bounds: Bounds, most: int) -> Found:
    """Copy what is new or changed below `work` into the folder `into`, which is made if there is anything."""
    found = Found()
    for name, entry in _walk(scratch, most):
        if not _printable(name):
            found.leave_out(ascii(name), "its name is not valid text")
        elif isinstance(entry, OSError):
            found.leave_out(_shortened(name), os.strerror(entry.errno or 0))
        elif not stat.S_ISREG(entry.st_mode):
            found.leave_out(name, _KINDS.get(stat.S_IFMT(entry.st_mode), "it is not a plain file"))
        elif before.get(name) != _stamp(entry):
            _copy_out(scratch, f"work/{name}", into / "files" / name, name, bounds, found)
    return found


def collect_images(scratch: int, count: int, into: Path, bounds: Bounds) -> Found:
    """The pictures that the sandbox's own code made; only what begins as a PNG file does."""
    found = Found()
    for number in range(1, count + 1):
        name = f"image-{number}.png"
        _copy_out(scratch, f"out/{name}", into / "images" / name, name, bounds, found)
    for image in list(found.files):
        with image.path.open("rb") as file:
            if file.read(8) != b"\x89PNG\r\n\x1a\n":
                found.files.remove(image)
                found.leave_out(image.name, "it is not a PNG picture")
    return found


_KINDS = {
    stat.S_IFLNK: "it is a symbolic link",
    stat.S_IFIFO: "it is a pipe",
    stat.S_IFSOCK: "it is a socket",
    stat.S_IFCHR: "it is a device",
    stat.S_IFBLK: "it is a device",
}


def _printable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(unicodedata.category(letter) in ("Cc", "Cf") for letter in name)


def _copy_out(scratch: int, source: str, target: Path, name: str, bounds: Bounds, found: Found) -> None:
    if bounds.files <= 0:
        found.leave_out(name, "too many files")
        return
    try:
        descriptor = linux.open_beneath(scratch, source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        found.leave_out(name, os.strerror(error.errno or 0))
        return
    try:
        entry = os.fstat(descriptor)
        if not stat.S_ISREG(entry.st_mode):
            found.leave_out(name, "it is not a plain file")
            return
        if entry.st_size > min(bounds.bytes, bounds.file_bytes):
            found.leave_out(name, f"its {entry.st_size} bytes are too many")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        size = _copy(descriptor, target, entry.st_size)
        bounds.bytes -= size
        bounds.files -= 1
        found.files.append(OutFile(name, target, size))
    except OSError as error:  # a path longer than the host's file system takes, no room there
        found.leave_out(name, os.strerror(error.errno or 0))
    finally:
        os.close(descriptor)


def _copy(source: int, target: Path, size: int) -> int:
    copied = 0
    with target.open("xb") as file:
        while copied < size and (data := os.read(source, min(_COPY, size - copied))):
            file.write(data)
            copied += len(data)
    return copied


def _shortened(name: str) -> str:
    return name if len(name) < _MOST_NAME else f"{name[:_MOST_NAME]}..."


def _walk(scratch: int, most: int) -> Iterator[tuple[str, os.stat_result | OSError]]:
    """Every entry below `work` that is not a folder, with its relative name, and folders that cannot be read, with why.
    Those whose name begins with a dot are a program's own business."""
    waiting = [""]
    seen = 0
    while waiting:
        folder = waiting.pop()
        try:
            at = linux.open_beneath(scratch, f"work/{folder}", os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            yield folder.rstrip("/"), error
            continue
        try:
            for name in sorted(os.listdir(at)):
                seen += 1
                if seen > most:
                    return
                entry = os.stat(name, dir_fd=at, follow_symlinks=False)
                if not stat.S_ISDIR(entry.st_mode):
                    yield folder + name, entry
                elif not name.startswith(".") and name != "__pycache__" and folder.count("/") < _MOST_DEPTH:
                    waiting.append(f"{folder}{name}/")
        finally:
            os.close(at)


def read(scratch: int, name: str, limit: int) -> bytes:
    """A plain file's bytes. Raises OSError; ValueError where it is over the limit or no plain file."""
    descriptor = linux.open_beneath(scratch, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        entry = os.fstat(descriptor)
        if not stat.S_ISREG(entry.st_mode):
            raise ValueError(f"{name} is not a plain file")
        if entry.st_size > limit:
            raise ValueError(f"{name} has {entry.st_size} bytes; at most {limit} are taken")
        return file.read(limit)
