"""CUDA graphs of decoding steps: one launch for a forward pass that otherwise takes some hundreds.

A graph repeats the same launches on the same addresses. So what changes from step to step is copied into buffers of the
graph's own, and a step is computed as one of the next size that there is a graph for:

    sequences     a   b   c  | p        three decode, the graph is for four
    token_ids    t0  t1  t2  | 0
    seq_lens     70 190  41  | 1        a padding row is a sequence of its own, in spare blocks that no other has

What else must hold, and does:

- Lengths are looked at on the device. What a batch says of them on the host holds for every replay: one new token each,
  and as many in all as the block table has room for.
- Whatever a kernel derives from a batch (`RaggedBatch.plans`) is derived inside the graph: it is recorded with a batch
  that nothing has been derived from.
- Kernels are compiled, configurations chosen and workspaces made before anything is recorded: the pass runs once as it
  is. It writes what the replay then writes again.
- Graphs share the memory of what they compute in passing, so they run one after the other, on one stream, and what a
  graph returns is copied before another one runs.
- Weights and caches stay where they are as long as the graphs live. Adapters come and go, so a step that uses one is
  not recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from ..ragged import RaggedBatch
from . import launch

Compute: TypeAlias = Callable[[], torch.Tensor]
Record: TypeAlias = Callable[[Compute], Compute]
Forward: TypeAlias = Callable[[torch.Tensor, RaggedBatch], torch.Tensor]

# Rows of a graph: the small sizes, and then multiples of the last. Beyond MAX_ROWS products take longer than launches.
SMALL_SIZES = (1, 2, 4, 8)
MAX_ROWS = 256
MAX_PADDING = SMALL_SIZES[-1] - 1
# Blocks of the shortest block table; longer ones are powers of two.
MIN_WIDTH = 64


def unavailable(device: torch.device) -> str:
    """Why decoding is not recorded on a device; empty where it is."""
    if device.type != "cuda":
        return "CUDA graphs are for NVIDIA cards"
    if why := launch.unavailable(device):
        return why
    from .. import plain
    from . import path

    return "attention looks at lengths on the host" if path.paged_attention is plain.paged_attention else ""


def num_rows(num_seqs: int) -> int:
    """Rows of the graph that computes so many sequences."""
    last = SMALL_SIZES[-1]
    return next((size for size in SMALL_SIZES if size >= num_seqs), -(-num_seqs // last) * last)


def table_width(num_blocks: int) -> int:
    """Columns of the block table of the graph that computes sequences of so many blocks."""
    return max(MIN_WIDTH, 1 << (num_blocks - 1).bit_length())


def num_spare_blocks(block_size: int) -> int:
    """Blocks that padding rows need in the cache, behind those of the sequences."""
    return -(-MAX_PADDING // block_size)


class Inputs:
    """The buffers that a graph reads: a batch of `rows` sequences, each with one new token and up to `width` blocks.

    `first_spare`: the first of the cache's spare blocks. Padding rows are always the last ones, so each of the last
    MAX_PADDING rows has a place there that is its own, counted from the end.
    """

    def __init__(self, rows: int, width: int, block_size: int, first_spare: int, device: torch.device) -> None:
        self.width = width
        self.block_size = block_size
        from_end = torch.arange(rows - 1, -1, -1, device=device) % MAX_PADDING
        self._spare_blocks = first_spare + from_end // block_size
        offsets = from_end % block_size
        # Of each: what a padding row has there.
        self._padding = (
            torch.zeros_like(offsets),
            offsets,
            self._spare_blocks * block_size + offsets,
            offsets + 1,
        )
        self.token_ids, self._positions, self._slots, self._seq_lens = (x.clone() for x in self._padding)
        self._tables = torch.zeros(rows, width, dtype=torch.int64, device=device)
        self._query_starts = torch.arange(rows + 1, device=device)

    def fill(self, token_ids: torch.Tensor, batch: RaggedBatch) -> None:
        """Take over a step's token ids [num_seqs] and its batch, and pad them."""
        num_seqs, width = batch.block_tables.shape
        buffers = (self.token_ids, self._positions, self._slots, self._seq_lens)
        given = (token_ids, batch.positions, batch.slots, batch.seq_lens)
        for buffer, values, padding in zip(buffers, given, self._padding, strict=True):
            buffer[:num_seqs].copy_(values)
            buffer[num_seqs:].copy_(padding[num_seqs:])
        self._tables[:num_seqs, :width].copy_(batch.block_tables)
        self._tables[num_seqs:, 0].copy_(self._spare_blocks[num_seqs:])

    def batch(self) -> RaggedBatch:
        """The batch in these buffers, from which nothing has been derived yet."""
        rows = len(self.token_ids)
        return RaggedBatch(
            positions=self._positions,
            slots=self._slots,
            block_tables=self._tables,
            seq_lens=self._seq_lens,
            query_starts=self._query_starts,
            block_size=self.block_size,
            host=(list(range(rows + 1)), [self.width * self.block_size] * rows),
        )


class DecodeGraphs:
    """The graphs of one model on one cache, each recorded when it is first needed.

    `forward` computes a batch from token ids [num_rows] to [num_rows, hidden]. `first_spare`: the first of
    `num_spare_blocks` blocks of its cache that no sequence has. `record` is for tests.
    """

    def __init__(self, forward: Forward, block_size: int, first_spare: int, record: Record | None = None) -> None:
        self._forward = forward
        self._block_size = block_size
        self._first_spare = first_spare
        self._record = record or Recorder()
        self._graphs: dict[tuple[int, int], tuple[Inputs, Compute]] = {}

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns of the block table) of each that was recorded."""
        return tuple(self._graphs)

    @staticmethod
    def takes(batch: RaggedBatch) -> bool:
        """Whether a step is computed here: nothing but decoding, which is known without asking the device."""
        if batch.host is None or not 0 < batch.num_seqs == batch.num_tokens <= MAX_ROWS:
            return False
        return batch.host[0] == list(range(batch.num_seqs + 1))

    def run(self, token_ids: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        """What `forward` returns for a batch that this takes, [num_seqs, hidden]."""
        size = num_rows(batch.num_seqs), table_width(batch.block_tables.shape[1])
        if size not in self._graphs:
            inputs = Inputs(*size, self._block_size, self._first_spare, token_ids.device)
            inputs.fill(token_ids, batch)
            self._graphs[size] = inputs, self._record(lambda: self._forward(inputs.token_ids, inputs.batch()))
        inputs, compute = self._graphs[size]
        inputs.fill(token_ids, batch)
        return compute()[: batch.num_seqs].clone()


class Recorder:
    """Records on the current card. What it recorded must be replayed there, one graph at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def __call__(self, compute: Compute) -> Compute:
        """Runs `compute` once, then records it. RuntimeError where it does what cannot be recorded."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            compute()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with another card, or with a model of their own on this one.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            out = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay
