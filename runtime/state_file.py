"""The file that `callboard state export` writes: one record after another, so that neither side ever holds it whole.

    magic line | (length, MessagePack record)* | (length, End)

End carries the SHA-256 of all before it, so a file that was cut short has none and one that was changed does not fit
it. That finds damage; it is no signature.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from .errors import BackupDamaged, ConfigError, StoreFull
from .messages import UNDECODABLE

MAGIC = b"callboard state 1\n"
_FAMILY = b"callboard state "
# More than a server takes as one message, whatever it is set to.
_MOST = 256 << 20


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """Who wrote the file, and when (seconds since the epoch)."""

    version: str
    written: float


class State(msgspec.Struct, frozen=True, array_like=True, tag="state"):
    """An actor's state as stored (`schemas/store.py: Saved`). A later record of the same name replaces it."""

    name: str
    seq: int
    data: bytes


class Batch(msgspec.Struct, frozen=True, array_like=True, tag="batch"):
    """A message of an event log as stored (`LogBatch`), and when it was written (RFC 3339)."""

    name: str
    seq: int
    at: str
    data: bytes


class End(msgspec.Struct, frozen=True, array_like=True, tag="end"):
    """Which of the names above were there at the moment that the file is of, and the digest of all before this."""

    states: tuple[str, ...]
    logs: tuple[str, ...]
    sha256: bytes


Record = Start | State | Batch | End

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class Writer:
    """Writes beside `path`, with mode 0600, and puts it there by `finish`. Leaving the block without drops it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    def __enter__(self) -> Writer:
        try:
            # mkstemp opens with O_EXCL and mode 0600.
            descriptor, self._name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        except OSError as error:
            raise ConfigError(f"cannot write to the folder {self._path.parent}: {error.strerror}") from error
        self._file = os.fdopen(descriptor, "wb")
        self._put(MAGIC)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._file.close()
        except OSError:
            if error is None:
                raise
        finally:
            Path(self._name).unlink(missing_ok=True)

    def write(self, record: Start | State | Batch) -> None:
        """Raises StoreFull."""
        self._frame(record)

    def finish(self, states: tuple[str, ...], logs: tuple[str, ...]) -> bytes:
        """The file is at its place, on the disk, when this returns: its digest. Raises StoreFull."""
        digest = self._digest.digest()
        self._frame(End(states, logs, digest))
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._name, self._path)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise self._typed(error) from error
        return digest

    def _frame(self, record: Record) -> None:
        data = _encode(record)
        self._put(len(data).to_bytes(4, "big"))
        self._put(data)

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._typed(error) from error
        self._digest.update(data)
        self.num_bytes += len(data)

    def _typed(self, error: OSError) -> StoreFull | ConfigError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreFull(f"no room left for {self._path}", hint="make room there, or write it elsewhere")
        return ConfigError(f"cannot write {self._path}: {error.strerror}")


class Reader:
    """An export, opened once, so that what was checked is what is read. Raises ConfigError where there is no file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("rb")
            self.num_bytes = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def records(self) -> Iterator[Record]:
        """All of it from the beginning, the End checked against what came before. Raises BackupDamaged."""
        self._file.seek(0)
        digest = hashlib.sha256()
        magic = self._file.read(len(MAGIC))
        if magic != MAGIC:
            if magic.startswith(_FAMILY):
                raise BackupDamaged(
                    f"{self._path} is of another version of this format",
                    hint="import it with the release of callboard that wrote it",
                )
            raise BackupDamaged(f"{self._path} is no export of callboard's state")
        digest.update(magic)
        while True:
            length = self._take(4)
            size = int.from_bytes(length, "big")
            if size > _MOST:
                raise self._damaged()
            data = self._take(size)
            try:
                record = _decode(data)
            except UNDECODABLE as error:
                raise self._damaged() from error
            if isinstance(record, End):
                if record.sha256 != digest.digest() or self._file.read(1):
                    raise self._damaged()
                yield record
                return
            digest.update(length)
            digest.update(data)
            yield record

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise BackupDamaged(f"{self._path} is cut short: its end is missing")
        return data

    def _damaged(self) -> BackupDamaged:
        return BackupDamaged(f"{self._path} is damaged: its bytes are not those that were written")
