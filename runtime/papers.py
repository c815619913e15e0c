"""Secrets of a process that was brought to another machine: a folder of its own, and gone with whoever made it.

Where the system can do that (Linux), what lies in the folder are links to memory of the process that made it, so no
secret touches the disk. What a killed process left is known by its free lock, and swept when the next comes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path

_PREFIX = "callboard-papers-"
_LOCK = "lock"


class Papers:
    """Files that only this user may read, for as long as this process lives or until `close`."""

    def __init__(self, base: Path | None = None) -> None:
        base = base or Path(tempfile.gettempdir())
        sweep(base)
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))  # for this user alone
        self._descriptors = [_locked(self.folder / _LOCK)]

    def put(self, name: str, data: bytes) -> str:
        """The path under which other processes of this user may read it."""
        path = self.folder / name
        if sys.platform == "linux":
            descriptor = os.memfd_create(name)
            os.fchmod(descriptor, 0o600)
            self._descriptors.append(descriptor)
            path.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        else:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb", closefd=sys.platform != "linux") as file:
            file.write(data)
        return str(path)

    def close(self) -> None:
        shutil.rmtree(self.folder)
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


def sweep(base: Path) -> None:
    """Remove what killed processes left below `base`."""
    for folder in base.glob(f"{_PREFIX}*"):
        try:
            descriptor = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:  # somebody else's, or just being made
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)  # another may sweep it too
        finally:
            os.close(descriptor)


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of a file that is there only once it is locked."""
    new = path.with_name("new")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    new.rename(path)
    return descriptor
