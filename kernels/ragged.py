"""Which tokens of a step belong to which sequence, and where their keys and values lie.

A step computes several sequences at once, each with any number of new tokens: many for a prompt, one for decoding.
Their tokens are laid end to end; `query_starts` marks where each sequence begins. With two sequences, the first of
five tokens of which two are new, the second of three tokens, all new:

    tokens of the step        a3 a4 | b0 b1 b2
    positions                  3  4    0  1  2
    query_starts             [ 0, 2, 5 ]
    seq_lens                 [ 5, 3 ]               tokens whose keys attention reads: old and new

Keys and values lie in blocks of `block_size` slots; `block_tables` names the blocks of each sequence in order, and
`slots` says where each new token's key and value are written: block * block_size + offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from .upload import upload

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, eq=False)
class RaggedBatch:
    """The index side of one step, the same for every layer. All tensors are int64 and on the model's device.

    positions     [num_tokens]            place of each new token in its sequence
    slots         [num_tokens]            where its key and value are written
    block_tables  [num_seqs, max_blocks]  padded with 0; entries past a sequence's length are never read
    seq_lens      [num_seqs]              tokens of each sequence, this step's included
    query_starts  [num_seqs + 1]          first new token of each sequence

    `plans` belongs to the kernels: what a path derives from these once per step instead of once per layer. `host` is
    (query_starts, seq_lens) as who built the batch had them, so that nobody has to wait for a card to learn them.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    block_tables: torch.Tensor
    seq_lens: torch.Tensor
    query_starts: torch.Tensor
    block_size: int
    plans: dict[str, Any] = field(default_factory=dict, repr=False)
    host: tuple[list[int], list[int]] | None = field(default=None, repr=False)  # what `lengths` returns, if known

    @classmethod
    def build(
        cls,
        seq_lens: Sequence[int],
        query_lens: Sequence[int],
        block_tables: Sequence[Sequence[int]],
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> RaggedBatch:
        """From plain lists, one entry per sequence; `ValueError` where they contradict each other."""
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for seq_len, query_len, table in zip(seq_lens, query_lens, block_tables, strict=True):
            if not 0 <= query_len <= seq_len:
                raise ValueError(f"{query_len} new tokens in a sequence of {seq_len}")
            if len(table) * block_size < seq_len:
                raise ValueError(f"{len(table)} blocks of {block_size} cannot hold {seq_len} tokens")
            new = range(seq_len - query_len, seq_len)
            positions.extend(new)
            slots.extend(table[position // block_size] * block_size + position % block_size for position in new)
            starts.append(starts[-1] + query_len)
        width = max((len(table) for table in block_tables), default=0)

        def tensor(values: Any) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        return cls(
            positions=tensor(positions),
            slots=tensor(slots),
            block_tables=tensor([[*table, *[0] * (width - len(table))] for table in block_tables]).view(
                len(block_tables), width
            ),
            seq_lens=tensor(seq_lens),
            query_starts=tensor(starts),
            block_size=block_size,
            host=(starts, list(seq_lens)),
        )

    @classmethod
    def from_arrays(
        cls,
        seq_lens: np.ndarray,
        query_lens: np.ndarray,
        block_tables: np.ndarray,
        block_size: int,
        device: torch.device | str = "cpu",
    ) -> RaggedBatch:
        """The same from int64 arrays: [num_seqs], [num_seqs], and [num_seqs, max_blocks] of any padding.

        Unchecked but for the shapes: for who calls it every step and knows that they agree. On the CPU the arrays are
        taken over, not copied.
        """
        import numpy as np

        num_seqs = len(seq_lens)
        starts = np.zeros(num_seqs + 1, np.int64)
        np.cumsum(query_lens, out=starts[1:])
        num_tokens = int(starts[-1])
        if num_tokens == num_seqs and query_lens.all():  # one token each: nothing but decoding
            positions = seq_lens - 1
            rows = np.arange(num_seqs)
        else:
            rows = np.repeat(np.arange(num_seqs), query_lens)
            positions = np.arange(num_tokens) + (seq_lens - query_lens - starts[:-1])[rows]
        blocks, offsets = np.divmod(positions, block_size)
        slots = block_tables[rows, blocks] * block_size + offsets

        arrays = (positions, slots, block_tables, seq_lens, starts)
        return cls(
            *upload([torch.from_numpy(array) for array in arrays], device),
            block_size=block_size,
            host=(starts.tolist(), seq_lens.tolist()),
        )

    def lengths(self) -> tuple[list[int], list[int]]:
        """(query_starts, seq_lens) on the host: without waiting for the device, where they came from there."""
        return self.host or (self.query_starts.tolist(), self.seq_lens.tolist())

    @property
    def num_tokens(self) -> int:
        return self.positions.shape[0]

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]
