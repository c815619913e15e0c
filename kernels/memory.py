"""Memory for weights, keys and values: what a step streams through, in large pages where the system has them.

A step reads every weight once. With pages of 4 KiB each brings a miss in the processor's table of them, and its
prefetching ends at each border; with pages of 2 MiB int8 products of 32 rows take some four percent less time.
"""

from __future__ import annotations

import contextlib
import mmap

import torch

LINE = 64
CHUNK = 32 << 20


class Arena:
    """Hands out zeroed memory that begins at cache lines, from chunks of 32 MiB. Nothing is handed out twice. A chunk
    is freed with the last tensor in it."""

    def __init__(self) -> None:
        self._chunk: mmap.mmap | None = None
        self._used = 0

    def take(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes]."""
        if self._chunk is None or self._used + num_bytes > len(self._chunk):
            self._chunk = large_pages(max(num_bytes, CHUNK))
            self._used = 0
        start = self._used
        self._used += -(-num_bytes // LINE) * LINE
        return torch.frombuffer(self._chunk, dtype=torch.uint8, count=num_bytes, offset=start)


def large_pages(num_bytes: int) -> mmap.mmap:
    """Zeroed memory that begins at a page, and that costs nothing until it is written to."""
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without large pages has small ones
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
