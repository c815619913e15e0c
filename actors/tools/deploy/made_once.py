"""Folders in the cache that are made once, used by many processes, and removed when nobody has used them for long.

Beside each folder lies a file that is locked (flock): shared by who uses the folder, exclusively by who makes or
removes it. The kernel drops a dead process's locks. The file's time is that of the last use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from ....runtime.files import private_folder

# A lock says nothing when it is free; it is tried again after this, less up to a half at random.
RETRY_S = 0.25
UNUSED_S = 30 * 86400.0


class Kept:
    """A folder that nobody removes before `release`, or the end of this process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def keep(folder: Path, is_whole: Callable[[], bool], make: Callable[[], Awaitable[None]]) -> Kept:
    """Use a folder. Where it is not there or not whole (`is_whole` runs in a thread), `make` makes it anew, and nobody
    else does meanwhile. Raises what `make` raises."""
    private_folder(folder.parent)
    while True:
        descriptor = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if _locked(descriptor, fcntl.LOCK_SH):
                if await run_sync(is_whole):
                    os.utime(descriptor)
                    kept, descriptor = Kept(descriptor), -1
                    return kept
                if _locked(descriptor, fcntl.LOCK_EX):
                    # Between the two locks somebody else may have made it.
                    if not await run_sync(is_whole):
                        await make()
                    continue
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        await anyio.sleep(RETRY_S * random.uniform(0.5, 1.0))


def prune(base: Path, remove: Callable[[Path], None], unused_s: float = UNUSED_S) -> list[Path]:
    """Remove the folders in `base` that nobody uses now or has used for so long. Blocking."""
    gone: list[Path] = []
    for lock in base.glob("*.lock"):
        folder = lock.with_suffix("")
        if not folder.exists() or lock.stat().st_mtime > time.time() - unused_s:
            continue
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, descriptor)
            if _locked(descriptor, fcntl.LOCK_EX) and os.fstat(descriptor).st_mtime <= time.time() - unused_s:
                remove(folder)
                gone.append(folder)
    return gone


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _locked(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
