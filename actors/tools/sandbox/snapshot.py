"""A session put away: the bytes of its values, which only a sandbox ever unpickles, and its files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

import msgspec

from .errors import SnapshotRefused

_VERSION = 1


class SessionSnapshot(msgspec.Struct, frozen=True):
    """`state`: opaque. `files`: by name below the work folder. `kept`, `lost`: names of values (and of files that were
    too big), with the reason. Whoever holds one may change it: what it does, it does in a sandbox."""

    state: bytes
    files: tuple[tuple[str, bytes], ...] = ()
    shell: bytes = b""
    kept: tuple[str, ...] = ()
    lost: tuple[tuple[str, str], ...] = ()
    version: int = _VERSION

    def to_bytes(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes, limit: int) -> SessionSnapshot:
        """Raises SnapshotRefused where it is none, or has more than `limit` bytes."""
        if len(data) > limit:
            raise SnapshotRefused(f"a snapshot of {len(data)} bytes; at most {limit} are taken")
        try:
            found = msgspec.msgpack.decode(data, type=cls)
        except msgspec.MsgspecError as error:
            raise SnapshotRefused(f"this is no snapshot of a session: {error}") from error
        if found.version != _VERSION:
            raise SnapshotRefused(f"a snapshot of version {found.version}; this release reads {_VERSION}")
        return found


class SnapshotFolder:
    """Snapshots of an owner's sessions as files, each replaced as a whole: a crash leaves the old or the new one."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit

    def _path(self, session: str) -> Path:
        # Any text may name a session; a file's name must not lead elsewhere.
        return self._folder / f"{hashlib.sha256(session.encode()).hexdigest()}.session"

    def write(self, session: str, snapshot: SessionSnapshot) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(snapshot.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self._path(session))
        except BaseException:
            os.unlink(name)
            raise

    def read(self, session: str) -> SessionSnapshot | None:
        """None where there is none. Raises SnapshotRefused."""
        try:
            data = self._path(session).read_bytes()
        except FileNotFoundError:
            return None
        return SessionSnapshot.from_bytes(data, self._limit)

    def forget(self, older_than_s: float) -> None:
        """Delete those that nobody has written for so long."""
        oldest = time.time() - older_than_s
        for path in self._folder.glob("*.session"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def delete(self, session: str) -> None:
        self._path(session).unlink(missing_ok=True)
