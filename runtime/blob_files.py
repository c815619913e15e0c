"""The files that blobs are kept in on one host, shared by all processes of one person.

Nothing here is counted but by the kernel. Each process has a folder of its own, a *lease*, and holds a lock in it
(flock) for as long as it lives; a process that holds a blob has a hard link to its file there. So a blob's bytes go
with its last link, and the links of a process that was killed are found by its lock being free. A file's modification
time is when its time is over. All calls block: use them in a thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ..schemas.blob import Blob
from .errors import BlobDamaged, BlobNoRoom
from .files import private_folder
from .piece_hash import PieceHash, digest_of

# The time of a file that has none: further off than any clock, and within what file systems can write down.
NEVER = 4_102_444_800.0
# A lease that is being made has another name until its lock is held. One that stays so was made by a dead process.
MAKING_S = 60.0
# Hashing and writing in pieces of this size keeps them in the processor's cache.
STEP = 1 << 20
# From this size on it pays to hash and to write at once, on several cores.
BESIDE = 4 << 20

_LOCK = "lock"
# A blob's file has its id for a name; the lock, and what is being written, have shorter and longer ones.
_ID_CHARS = 32


def host_key() -> str:
    """Names this host as it runs now: processes that agree on it see the same files and the same locks.

    The machine and its boot, because a host name says neither: a folder may be on a network drive, a name may be that
    of two machines, and of what was before the last boot nothing lives any more.
    """
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    else:
        boot = subprocess.run(
            ["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True
        ).stdout
    machine = ""
    for file in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            machine = machine or Path(file).read_text()
    return f"{_short(machine or os.uname().nodename)}-{_short(boot)}"


def _short(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


class Writer:
    """A blob on its way into its file. It is there for others once `finish` returned; `abandon` leaves nothing.

    `abandon` may be called while another thread is in `write`, whose task was cancelled: it waits for the piece.
    """

    def __init__(self, lease: Path, blob_id: str, expires: float) -> None:
        self._path = lease / blob_id
        self._part = lease / f".{blob_id}"
        self._expires = expires
        self._hash = PieceHash()
        self._busy = threading.Lock()
        self._is_over = False
        self._file = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Raises BlobNoRoom when the disk is full."""
        with self._busy, memoryview(data) as view, view.cast("B") as flat:
            if len(flat) >= BESIDE:
                self._write_beside(flat)
            else:
                for start in range(0, len(flat), STEP):
                    piece = flat[start : start + STEP]
                    self._hash.update(piece)
                    self._write(piece)
            self.size += len(flat)

    def _write_beside(self, flat: memoryview) -> None:
        """Hash in one thread what another writes: both leave the interpreter to others while they are at it."""
        hashing = threading.Thread(target=self._hash.update, args=(flat,), name="blob-hash")
        hashing.start()
        try:
            self._write(flat)
        finally:
            hashing.join()

    def _write(self, piece: memoryview) -> None:
        written = 0
        try:
            while written < len(piece) and not self._is_over:
                written += os.write(self._file, piece[written:])
        except OSError as error:
            raise BlobNoRoom(f"a blob cannot be written to {self._part.parent}: {error.strerror}") from error

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def finish(self) -> None:
        os.fchmod(self._file, 0o400)
        os.utime(self._file, (self._expires, self._expires))
        os.rename(self._part, self._path)
        os.close(self._file)
        self._is_over = True

    def abandon(self) -> None:
        if not self._is_over:
            self._is_over = True
            with self._busy:
                os.close(self._file)
                self._part.unlink(missing_ok=True)


class Reader:
    """A blob's open file. It stays readable after its last link is gone. Raises BlobDamaged at the end of `read`."""

    def __init__(self, file: int, blob: Blob) -> None:
        self._file = file
        self._blob = blob
        self._busy = threading.Lock()
        self._hash = PieceHash()
        self._offset = 0

    def read(self, size: int) -> bytes:
        """The next bytes; none at the end."""
        data = self.read_unchecked(size)
        self._hash.update(data)
        if (not data or self._offset > self._blob.size) and self._hash.hexdigest() != self._blob.digest:
            raise damaged(self._blob)
        return data

    def read_unchecked(self, size: int) -> bytes:
        with self._busy:
            data = os.pread(self._file, size, self._offset)
        self._offset += len(data)
        return data

    def map(self) -> mmap.mmap:
        """All of it, checked, as pages of the file itself."""
        if os.fstat(self._file).st_size != self._blob.size:
            raise damaged(self._blob)
        mapped = mmap.mmap(self._file, self._blob.size, access=mmap.ACCESS_READ)
        if digest_of(mapped) != self._blob.digest:
            mapped.close()
            raise damaged(self._blob)
        return mapped

    def close(self) -> None:
        with self._busy:  # a thread whose task was cancelled may still be at it
            os.close(self._file)


def damaged(blob: Blob) -> BlobDamaged:
    return BlobDamaged(f"the {blob.size} bytes of blob {blob.id or blob.digest[:16]} are not those that were put")


class BlobFiles:
    """A process's lease on the folder. It ends with the process, whatever ends that, or by `end`."""

    def __init__(self, base: Path) -> None:
        self.folder = private_folder(base / host_key())
        self.lease = secrets.token_hex(16)
        self._own = self.folder / self.lease
        making = self.folder / f".{self.lease}"
        making.mkdir(mode=0o700)
        self._lock = os.open(making / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        making.rename(self._own)

    def end(self) -> None:
        shutil.rmtree(self._own, ignore_errors=True)  # what is left of it is swept, now that nobody has the lock
        os.close(self._lock)

    def writer(self, blob_id: str, expires: float) -> Writer:
        return Writer(self._own, blob_id, expires)

    def open(self, blob: Blob) -> Reader | None:
        """None where no process of this host holds it, or its time is over."""
        for path in self._places(blob.id, blob.lease):
            with contextlib.suppress(FileNotFoundError):
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                if os.fstat(file).st_mtime > time.time():
                    return Reader(file, blob)
                os.close(file)
        return None

    def hold(self, blob: Blob, expires: float) -> bool:
        """Keep the file until `drop`, and until `expires` at least. False where it is not there to be held."""
        own = self._own / blob.id
        for path in self._places(blob.id, blob.lease):
            with contextlib.suppress(FileNotFoundError):
                old = os.stat(path, follow_symlinks=False).st_mtime
                if old <= time.time():
                    continue
                with contextlib.suppress(FileExistsError):
                    os.link(path, own, follow_symlinks=False)
                if expires > old:
                    os.utime(own, (expires, expires))
                return True
        return False

    def drop(self, blob_id: str) -> None:
        (self._own / blob_id).unlink(missing_ok=True)

    def _places(self, blob_id: str, lease: str) -> Iterator[Path]:
        """Where it may be: with its owner, or with whoever held it before the owner let it go."""
        yield self._own / blob_id
        if lease and lease != self.lease:
            yield self.folder / lease / blob_id
        for name in os.listdir(self.folder):
            if name not in (self.lease, lease):
                yield self.folder / name / blob_id


def sweep(base: Path) -> int:
    """Remove what dead processes left below `base`, and what is past its time. Returns how many entries went.

    Any number of processes may do so at once. What another machine keeps there, on a network drive, is its own.
    """
    key = host_key()
    machine = key.partition("-")[0]
    removed = 0
    for folder in _entries(base):
        if folder.name.startswith(machine):
            removed += sum(_sweep_lease(lease) for lease in _entries(folder))
            if folder.name != key:  # of an earlier boot
                with contextlib.suppress(OSError):
                    folder.rmdir()
    return removed


def _entries(folder: Path) -> list[Path]:
    """Those that are there now. Somebody else may be sweeping too."""
    try:
        return [folder / name for name in os.listdir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _sweep_lease(lease: Path) -> int:
    try:
        if lease.name.startswith(".") and lease.stat().st_mtime > time.time() - MAKING_S:
            return 0
        if _is_dead(lease):
            shutil.rmtree(lease, ignore_errors=True)
            return 1
        return sum(_sweep_file(file) for file in _entries(lease) if len(file.name) == _ID_CHARS)
    except FileNotFoundError:
        return 0


def _is_dead(lease: Path) -> bool:
    try:
        lock = os.open(lease / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # it is being removed, or its making was cut short
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _sweep_file(file: Path) -> int:
    if file.stat().st_mtime > time.time():
        return 0
    file.unlink(missing_ok=True)
    return 1
