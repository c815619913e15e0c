"""How likely the tokens of a prompt are: each scored by the hidden state of the one before it."""

from __future__ import annotations

import torch

from ...schemas.serve import TokenLogprob
from ...schemas.serve_steps import PromptLogprobs
from ..models.served import ServedModel
from .logprobs import token_logprobs
from .step_batch import Part

# Logits of a whole prompt can be larger than the model: this many rows exist at once.
ROWS_AT_ONCE = 64


def score_prompt(model: ServedModel, hidden: torch.Tensor, part: Part, deterministic: bool) -> PromptLogprobs | None:
    """Log-probabilities of the tokens that this step's hidden states [num_tokens, hidden] stand before.

        chunk      t4 t5 t6 t7 |          computed now
        scored        t5 t6 t7 t8         t8 too: it begins the next chunk, and is known

    So no chunk needs anything of the one before. None where no known token follows.
    """
    sequence = part.sequence
    first = part.asked.num_cached + 1
    last = min(part.end, sequence.num_start - 1)
    if last < first:
        return None
    targets = torch.tensor(sequence.tokens[first : last + 1], device=hidden.device)
    rows = hidden[part.first_row : part.first_row + len(targets)]
    scored: list[TokenLogprob] = []
    for piece, wanted in zip(rows.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True):
        logits = model.logits(piece, deterministic)
        scored += token_logprobs(logits, wanted, [sequence.prompt_logprobs] * len(wanted))
    return PromptLogprobs(sequence.sequence_id, first, tuple(scored))
