"""From the parts of a step to what the model takes: token ids and a ragged batch, and which rows come back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ...kernels.ragged import RaggedBatch
from ...kernels.upload import upload
from ...schemas.serve_steps import StepSequence
from .block_tables import BlockTables
from .replica_sequence import ReplicaSequence


@dataclass(slots=True)
class Part:
    """One sequence's part of a step.

        tokens      t0 .. t5 | t6 t7 t8 | x0 x1        asked.num_cached 6, asked.num_tokens 3, two guesses
                    cached     computed   guesses      `end` is 9, what the forward pass computes 6 to 11

    `first_row` is where the part's tokens begin among the rows of its forward pass.
    """

    asked: StepSequence
    sequence: ReplicaSequence
    guesses: list[int] = field(default_factory=list)
    first_row: int = 0

    @property
    def end(self) -> int:
        return self.asked.num_cached + self.asked.num_tokens

    @property
    def last_row(self) -> int:
        """The row of the last token that was asked for; the guesses' rows follow."""
        return self.first_row + self.asked.num_tokens - 1


def build_batch(
    parts: Sequence[Part], tables: BlockTables, block_size: int, device: torch.device
) -> tuple[torch.Tensor, RaggedBatch]:
    """(token ids [num_tokens], batch) of a forward pass over these parts, on `device`; sets their `first_row`."""
    tokens: list[int] = []
    seq_lens: list[int] = []
    query_lens: list[int] = []
    for part in parts:
        part.first_row = len(tokens)
        start, end = part.asked.num_cached, part.end
        if end - start == 1:
            tokens.append(part.sequence.tokens[start])
        else:
            tokens += part.sequence.tokens[start:end]
        tokens += part.guesses
        seq_lens.append(end + len(part.guesses))
        query_lens.append(len(tokens) - part.first_row)
    width = -(-max(seq_lens) // block_size)
    batch = RaggedBatch.from_arrays(
        np.array(seq_lens),
        np.array(query_lens),
        tables.cut([part.sequence.row for part in parts], width),
        block_size,
        device,
    )
    return upload([torch.from_numpy(np.array(tokens))], device)[0], batch
