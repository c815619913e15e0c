"""Log-probabilities as messages."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...kernels import ops
from ...schemas.serve import TokenLogprob


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, num_top: Sequence[int]) -> list[TokenLogprob]:
    """One for each row of logits [num_rows, vocab] and its token [num_rows], with that row's number of likeliest."""
    own, ids, top = ops.token_logprobs(logits, tokens, min(max(num_top), logits.shape[1]))
    rows = zip(tokens.tolist(), own.tolist(), ids.tolist(), top.tolist(), num_top, strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(row_ids[:count], row_top[:count], strict=True)))
        for token, logprob, row_ids, row_top, count in rows
    ]
