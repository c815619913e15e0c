"""The pool of key/value blocks: who holds which, and how often."""

from __future__ import annotations

from collections.abc import Iterable


class OutOfBlocks(Exception):
    """The pool has not as many free blocks as were asked for. The planner answers by preempting."""


class BlockPool:
    """Fixed pool of key/value blocks with reference counts.

    A block is free, or held by one or more sequences. Never blocks; what cannot be right (a block released twice)
    raises RuntimeError, because going on would mix one conversation into another.
    """

    def __init__(self, num_blocks: int) -> None:
        self._counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))  # the one freed last is taken first: it is warm

    @property
    def num_blocks(self) -> int:
        return len(self._counts)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take free blocks, each with a count of one. OutOfBlocks if there are too few: then none is taken."""
        if num_blocks > len(self._free):
            raise OutOfBlocks(f"{num_blocks} blocks wanted, {len(self._free)} free")
        taken = [self._free.pop() for _ in range(num_blocks)]
        for block in taken:
            self._counts[block] = 1
        return taken

    def share(self, block: int) -> None:
        """Count one more holder of a held block."""
        if not self._counts[block]:
            raise RuntimeError(f"block {block} is free and cannot be shared")
        self._counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Count one holder less for each; a block that nobody holds is free."""
        for block in blocks:
            if not self._counts[block]:
                raise RuntimeError(f"block {block} was released more often than it was taken")
            self._counts[block] -= 1
            if not self._counts[block]:
                self._free.append(block)

    def check_integrity(self, holders: Iterable[Iterable[int]] = ()) -> None:
        """Hold the books against `holders`, the block tables of all who hold blocks. RuntimeError if they differ."""
        expected = [0] * len(self._counts)
        for blocks in holders:
            for block in blocks:
                expected[block] += 1
        if expected != self._counts:
            wrong = next(i for i, (a, b) in enumerate(zip(expected, self._counts, strict=True)) if a != b)
            raise RuntimeError(f"block {wrong} has {self._counts[wrong]} holders and should have {expected[wrong]}")
        if sorted(self._free) != [block for block, count in enumerate(self._counts) if not count]:
            raise RuntimeError("the list of free blocks does not hold exactly the blocks that nobody holds")
