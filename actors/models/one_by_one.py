"""Arithmetic that does not depend on the batch, by having no batch: every token is computed by itself.

Matrix products round differently with the number of rows, so a token's result depends on what is computed beside it.
Alone, it depends on its own sequence only: on the same tokens and lengths, however prompts were divided into chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...kernels.ragged import RaggedBatch
from .kv_cache import KVCache

Forward = Callable[[torch.Tensor, KVCache, RaggedBatch, Sequence[str] | None], torch.Tensor]


def forward_one_by_one(
    forward: Forward, token_ids: torch.Tensor, cache: KVCache, batch: RaggedBatch, adapters: Sequence[str] | None
) -> torch.Tensor:
    """What `forward` returns for the batch, [num_tokens, hidden], a token at a time in the order of its sequence."""
    rows: list[torch.Tensor] = []
    starts, seq_lens = batch.lengths()
    only = torch.tensor([0, 1], device=batch.query_starts.device)
    for seq in range(batch.num_seqs):
        names = None if adapters is None else adapters[seq : seq + 1]
        for at in range(starts[seq], starts[seq + 1]):
            one = slice(at, at + 1)
            length = seq_lens[seq] - (starts[seq + 1] - 1 - at)
            alone = RaggedBatch(
                positions=batch.positions[one],
                slots=batch.slots[one],
                # No wider than its own sequence needs: how a kernel divides its work may follow from that.
                block_tables=batch.block_tables[seq : seq + 1, : -(-length // batch.block_size)],
                seq_lens=batch.positions[one] + 1,
                query_starts=only,
                block_size=batch.block_size,
                host=([0, 1], [length]),
            )
            rows.append(forward(token_ids[one], cache, alone, names))
    return torch.cat(rows)


def rows_one_by_one(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([function(row) for row in rows.split(1)])
