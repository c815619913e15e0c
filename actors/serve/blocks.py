"""The pool of key/value blocks: who holds which, and how often."""

from __future__ import annotations

from collections.abc import Iterable

# A byte of a map has room for no more.
MAX_HOLDERS_SHOWN = 254


class OutOfBlocks(Exception):
    """The pool has not as many blank blocks as were asked for. The planner answers by preempting."""


class BlockPool:
    """Fixed pool of key/value blocks with reference counts.

    A block is blank, or held by one or more sequences, or idle: held by nobody, but kept because its keys and values
    may be asked for again. Never blocks; what cannot be right (a block released twice) raises RuntimeError, because
    going on would mix one conversation into another.
    """

    def __init__(self, num_blocks: int) -> None:
        self._counts = [0] * num_blocks
        self._kept = bytearray(num_blocks)
        self._blank = list(range(num_blocks - 1, -1, -1))  # the one freed last is taken first: it is warm
        self._num_idle = 0

    @property
    def num_blocks(self) -> int:
        return len(self._counts)

    @property
    def num_blank(self) -> int:
        return len(self._blank)

    @property
    def num_idle(self) -> int:
        return self._num_idle

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, blank or idle."""
        return len(self._blank) + self._num_idle

    def cells(self, most: int) -> tuple[int, bytes]:
        """The pool as a map of at most so many cells: blocks for each, and a byte for each as `LaneStats` says."""
        states = bytes(
            min(count, MAX_HOLDERS_SHOWN) + 1 if count else kept
            for count, kept in zip(self._counts, self._kept, strict=True)
        )
        per_cell = -(-len(states) // most) or 1
        if per_cell == 1:
            return 1, states
        return per_cell, bytes(max(states[start : start + per_cell]) for start in range(0, len(states), per_cell))

    def is_held(self, block: int) -> bool:
        return self._counts[block] > 0

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blank blocks, each with a count of one. OutOfBlocks if there are too few: then none is taken."""
        if num_blocks > len(self._blank):
            raise OutOfBlocks(f"{num_blocks} blocks wanted, {len(self._blank)} blank")
        taken = [self._blank.pop() for _ in range(num_blocks)]
        for block in taken:
            self._counts[block] = 1
        return taken

    def share(self, block: int) -> None:
        """Count one more holder of a block that is held or idle."""
        if not self._counts[block]:
            if not self._kept[block]:
                raise RuntimeError(f"block {block} is free and cannot be shared")
            self._num_idle -= 1
        self._counts[block] += 1

    def release(self, blocks: Iterable[int]) -> list[int]:
        """Count one holder less for each. Returns those that are idle now; the others that nobody holds are blank."""
        idle: list[int] = []
        for block in blocks:
            if not self._counts[block]:
                raise RuntimeError(f"block {block} was released more often than it was taken")
            self._counts[block] -= 1
            if self._counts[block]:
                continue
            if self._kept[block]:
                self._num_idle += 1
                idle.append(block)
            else:
                self._blank.append(block)
        return idle

    def keep(self, block: int) -> None:
        """When nobody holds this held block any more, it is to be idle, not blank."""
        if not self._counts[block]:
            raise RuntimeError(f"block {block} is held by nobody, so there is nothing in it to keep")
        self._kept[block] = 1

    def discard(self, block: int) -> None:
        """The opposite of `keep`; an idle block is blank at once."""
        if not self._kept[block]:
            raise RuntimeError(f"block {block} is not kept")
        self._kept[block] = 0
        if not self._counts[block]:
            self._num_idle -= 1
            self._blank.append(block)

    def check_integrity(self, holders: Iterable[Iterable[int]] = (), kept: Iterable[int] = ()) -> None:
        """Hold the books against `holders`, the blocks of each who holds any, and against those that are `kept`.

        RuntimeError if they differ.
        """
        expected = [0] * len(self._counts)
        for blocks in holders:
            for block in blocks:
                expected[block] += 1
        if expected != self._counts:
            wrong = next(i for i, (a, b) in enumerate(zip(expected, self._counts, strict=True)) if a != b)
            raise RuntimeError(f"block {wrong} has {self._counts[wrong]} holders and should have {expected[wrong]}")
        if sorted(kept) != [block for block, is_kept in enumerate(self._kept) if is_kept]:
            raise RuntimeError("the blocks that are kept are not those that can be found")
        unheld = [block for block, count in enumerate(self._counts) if not count]
        if sorted(self._blank) != [block for block in unheld if not self._kept[block]]:
            raise RuntimeError("the list of blank blocks does not hold exactly those that nobody holds or keeps")
        if len(unheld) != self.num_free:
            raise RuntimeError(f"{len(unheld)} blocks are held by nobody, {self.num_free} are counted")
