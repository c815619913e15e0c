"""One vector for a text: its final hidden states, pooled over all of its tokens as the chunks of it are computed."""

from __future__ import annotations

import torch

from ...schemas.serve import Pooling
from ...schemas.serve_steps import Pooled
from .step_batch import Part


def pool(hidden: torch.Tensor, part: Part) -> Pooled | None:
    """Take in the part's hidden states, of [num_tokens, hidden]; the pooled one if these were the last."""
    sequence = part.sequence
    num_tokens = part.asked.num_tokens
    is_last = part.end == len(sequence.tokens)
    if sequence.pooling is Pooling.LAST:
        vector = hidden[part.last_row] if is_last else None
    else:
        # In float64, so that how a text was divided into chunks does not show in its vector.
        total = hidden[part.first_row : part.first_row + num_tokens].sum(0, dtype=torch.float64)
        sequence.pooled = total if sequence.pooled is None else sequence.pooled + total
        vector = sequence.pooled / len(sequence.tokens) if is_last else None
    return None if vector is None else Pooled(sequence.sequence_id, tuple(vector.float().tolist()))
