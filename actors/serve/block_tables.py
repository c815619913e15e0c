"""The replica's block tables: one row of block numbers for each sequence, in one array that steps are cut from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FIRST_ROWS = 16
FIRST_WIDTH = 64


class BlockTables:
    """Rows that grow at their end. A row is taken for a sequence, and given back when the sequence is forgotten.

    Building the tables of a step from lists would cost more than the rest of its bookkeeping; a cut out of one array
    costs a few microseconds whatever the number of sequences.
    """

    def __init__(self) -> None:
        self._blocks = np.zeros((FIRST_ROWS, FIRST_WIDTH), np.int64)
        self._lengths = [0] * FIRST_ROWS
        self._free = list(range(FIRST_ROWS - 1, -1, -1))

    def take(self) -> int:
        """A row without blocks."""
        if not self._free:
            num_rows = len(self._blocks)
            self._blocks = np.concatenate([self._blocks, np.zeros_like(self._blocks)])
            self._lengths += [0] * num_rows
            self._free += range(2 * num_rows - 1, num_rows - 1, -1)
        return self._free.pop()

    def give_back(self, row: int) -> None:
        self._lengths[row] = 0
        self._free.append(row)

    def extend(self, row: int, blocks: Sequence[int]) -> None:
        start = self._lengths[row]
        end = start + len(blocks)
        while end > self._blocks.shape[1]:
            self._blocks = np.concatenate([self._blocks, np.zeros_like(self._blocks)], axis=1)
        self._blocks[row, start:end] = blocks
        self._lengths[row] = end

    def num_blocks(self, row: int) -> int:
        return self._lengths[row]

    def cut(self, rows: Sequence[int], width: int) -> np.ndarray:
        """A copy of the first `width` entries of these rows: int64 [len(rows), width]."""
        return self._blocks[rows, :width]
