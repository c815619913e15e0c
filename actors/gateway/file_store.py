"""Files that clients uploaded, in a folder that all gateways of a machine share.

    content/SHA256      what is in them; once, however often it was uploaded
    files/ID.json       a file: its name, what it is for, and which content it has
    lock                held by who adds or removes one

Blocking, all of it: call it from a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from ...runtime.files import private_folder, write_private
from .errors import GatewayError

Purpose = Literal["fine-tune", "user_data"]

_ID = re.compile(r"file-[0-9a-f]{24}")
_PIECE = 1 << 20
# What an upload that was cut short has left is removed after so long.
_LEFTOVER_S = 86400.0


class NoSuchFile(GatewayError):
    code = "gateway.file"
    status = 404


class FilesFull(GatewayError):
    code = "gateway.files_full"
    status = 413


class FileObject(msgspec.Struct, frozen=True, kw_only=True):
    """A file as OpenAI's API describes it. Times are seconds since 1970."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    object: Literal["file"] = "file"
    status: Literal["processed"] = "processed"
    expires_at: int | None = None


class _Stored(msgspec.Struct, frozen=True):
    file: FileObject
    sha256: str


class FileStore:
    """`max_bytes`: for all contents together."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes

    def add(self, content: BinaryIO, filename: str, purpose: Purpose, ttl_s: int | None) -> FileObject:
        """Raises FilesFull."""
        try:
            return self._add(content, filename, purpose, ttl_s)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise FilesFull("the disk is full") from error

    def _add(self, content: BinaryIO, filename: str, purpose: Purpose, ttl_s: int | None) -> FileObject:
        contents = private_folder(self._root / "content")
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=contents)
        aside = Path(name)
        try:
            digest, size = hashlib.sha256(), 0
            with os.fdopen(descriptor, "wb") as out:
                while piece := content.read(_PIECE):
                    digest.update(piece)
                    out.write(piece)
                    size += len(piece)
                out.flush()
                os.fsync(out.fileno())
            now = int(time.time())
            file = FileObject(
                id=f"file-{secrets.token_hex(12)}",
                bytes=size,
                created_at=now,
                filename=filename,
                purpose=purpose,
                expires_at=None if ttl_s is None else now + ttl_s,
            )
            with self._lock():
                self._remove_expired()
                place = contents / digest.hexdigest()
                if not place.exists():
                    self._check_room(size)
                    aside.rename(place)
                stored = _Stored(file, digest.hexdigest())
                write_private(self._root / "files" / f"{file.id}.json", msgspec.json.encode(stored))
            return file
        finally:
            aside.unlink(missing_ok=True)

    def _check_room(self, size: int) -> None:
        used = sum(path.stat().st_size for path in (self._root / "content").iterdir() if path.name[0] != ".")
        if used + size > self._max_bytes:
            raise FilesFull(
                f"files take {used:,} bytes of {self._max_bytes:,}, and this one {size:,} more", hint="delete some"
            )

    def list(self) -> list[FileObject]:
        """The oldest first."""
        now = time.time()
        files = [stored.file for stored in self._all() if not _expired(stored, now)]
        return sorted(files, key=lambda file: (file.created_at, file.id))

    def _all(self) -> Iterator[_Stored]:
        for path in (self._root / "files").glob("file-*.json"):
            with contextlib.suppress(FileNotFoundError):  # somebody removes it meanwhile
                yield _decode(path.read_bytes())

    def get(self, file_id: str) -> FileObject:
        """Raises NoSuchFile."""
        return self._stored(file_id).file

    def path(self, file_id: str) -> Path:
        """Where its content is. Raises NoSuchFile."""
        return self._root / "content" / self._stored(file_id).sha256

    def _stored(self, file_id: str) -> _Stored:
        if _ID.fullmatch(file_id):
            with contextlib.suppress(FileNotFoundError):
                stored = _decode((self._root / "files" / f"{file_id}.json").read_bytes())
                if not _expired(stored, time.time()):
                    return stored
        raise NoSuchFile(f"there is no file '{file_id}'", param="file_id")

    def delete(self, file_id: str) -> None:
        """Raises NoSuchFile."""
        with self._lock():
            self._remove(self._stored(file_id))

    def _remove_expired(self) -> None:
        now = time.time()
        for stored in [stored for stored in self._all() if _expired(stored, now)]:
            self._remove(stored)
        for path in (self._root / "content").glob(".new-*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - _LEFTOVER_S:
                    path.unlink()

    def _remove(self, stored: _Stored) -> None:
        """Its content goes with the last file that has it."""
        (self._root / "files" / f"{stored.file.id}.json").unlink(missing_ok=True)
        if all(other.sha256 != stored.sha256 for other in self._all()):
            (self._root / "content" / stored.sha256).unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        private_folder(self._root)
        with (self._root / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


_decode = msgspec.json.Decoder(_Stored).decode


def _expired(stored: _Stored, now: float) -> bool:
    return stored.file.expires_at is not None and stored.file.expires_at <= now
