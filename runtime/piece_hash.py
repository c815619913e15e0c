"""The digest of a large value, which many cores compute at once.

Of up to one piece it is the SHA-256 of the bytes; of more, the SHA-256 of the digests of its pieces in their order.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import os
from concurrent.futures import ThreadPoolExecutor

PIECE = 4 << 20
# More threads than so many wait for memory, not for a processor.
MAX_THREADS = 8


class PieceHash:
    """Takes bytes in order. What comes in one part of several pieces is hashed in threads, beside other Python."""

    def __init__(self) -> None:
        self._done: list[bytes] = []
        self._piece = hashlib.sha256()
        self._room = PIECE

    def update(self, data: bytes | bytearray | memoryview | mmap.mmap) -> None:
        with memoryview(data) as whole, whole.cast("B") as view:
            start = 0
            while start < len(view):
                if self._room == PIECE and len(view) - start >= 2 * PIECE and num_threads() > 1:
                    start = self._take_pieces(view, start)
                else:
                    start = self._take(view, start)

    def _take(self, view: memoryview, start: int) -> int:
        """Hash up to the end of the piece under way. Returns how far that is."""
        with view[start : start + self._room] as part:
            self._piece.update(part)
            self._room -= len(part)
            start += len(part)
        if not self._room:
            self._done.append(self._piece.digest())
            self._piece = hashlib.sha256()
            self._room = PIECE
        return start

    def _take_pieces(self, view: memoryview, start: int) -> int:
        """Hash the whole pieces from `start` on. Returns where they end."""
        end = start + (len(view) - start) // PIECE * PIECE
        self._done += _pool().map(lambda at: hashlib.sha256(view[at : at + PIECE]).digest(), range(start, end, PIECE))
        return end

    def hexdigest(self) -> str:
        if not self._done:
            return self._piece.hexdigest()
        if len(self._done) == 1 and self._room == PIECE:
            return self._done[0].hex()
        last = [self._piece.digest()] if self._room < PIECE else []
        return hashlib.sha256(b"".join([*self._done, *last])).hexdigest()


def digest_of(data: bytes | bytearray | memoryview | mmap.mmap) -> str:
    """The digest in hex. It blocks: use a thread for what is large."""
    hashed = PieceHash()
    hashed.update(data)
    return hashed.hexdigest()


@functools.cache
def num_threads() -> int:
    return min(MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads(), thread_name_prefix="blob-hash")
