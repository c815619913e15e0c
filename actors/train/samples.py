"""What the model answers on the way: the likeliest tokens, through the very module that is trained.

Nothing is kept of earlier tokens, so it works for every family and every way of sharding, and takes a forward pass for
each token: a few short answers at intervals, not serving.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import torch

from ..data.tokenized import Sequence
from ..models.chat_template import ChatTemplate
from ..models.tokenizer import Tokenizer
from .batches import packed, padded
from .trainable import TrainableModel


def answers(
    module: TrainableModel,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    prompts: Many[str],
    max_tokens: int,
    device: torch.device,
    *,
    is_packed: bool,
) -> list[str]:
    """One for each prompt, of at most `max_tokens` tokens. Every rank goes through the same passes."""
    rendered = [template.render([{"role": "user", "content": prompt}]) for prompt in prompts]
    texts = [tokenizer.encode(text, add_bos=False) for text in rendered]
    starts = [len(text) for text in texts]
    ended = [False] * len(texts)
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            for _ in range(max_tokens):
                open_ones = [number for number, end in enumerate(ended) if not end]
                if not open_ones:
                    break
                build = packed if is_packed else padded
                batch = build([_sequence(texts[number]) for number in open_ones]).to(device)
                found = module(batch, next_tokens=True).tolist()
                for number, token in zip(open_ones, found, strict=True):
                    if token in tokenizer.stop_ids:
                        ended[number] = True
                    else:
                        texts[number].append(token)
    finally:
        module.train(was_training)
    return [tokenizer.decode(text[start:]) for text, start in zip(texts, starts, strict=True)]


def _sequence(token_ids: list[int]) -> Sequence:
    return Sequence(np.array(token_ids), np.zeros(len(token_ids), np.uint8))
