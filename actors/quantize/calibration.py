"""Sequences of tokens from text: some to look at activations with, others to hold the result against."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...runtime.errors import UsageError
from ..data.dataset import load_data
from ..data.options import DataOptions
from ..data.tokenized import Pair
from ..models.loading import load_tokenizer

BUILT_IN = Path(__file__).with_name("calibration.txt")
# One sequence in so many is held out, and at least one.
HELD_OUT_EVERY = 8
MAX_HELD_OUT = 16
# Of a large data set so much is drawn from: tokens enough for a thousand times the usual number of sequences.
MAX_TOKENS = 1 << 25


class Tokens(NamedTuple):
    """Both int64 [num_seqs, length]; no token is in both. `text`: where they came from."""

    calibration: torch.Tensor
    held_out: torch.Tensor
    text: str


def read_tokens(model: Path, data: str, template: str = "", *, seed: int = 0) -> NDArray[np.integer]:
    """The tokens of `data` laid end to end: all that a trainer takes, files, hubs' data sets, mixtures; "" is the
    built-in text. Conversations are as the model's own template writes them; of preferences it is the chosen answers.

    Raises what `load_data` raises.
    """
    if not data:
        return np.array(load_tokenizer(model).encode(BUILT_IN.read_text("utf-8")), np.int64)
    training = load_data(data, model, DataOptions(template=template), seed=seed)
    sequences: list[NDArray[np.integer]] = []
    num_tokens = 0
    for _, sample in zip(range(len(training)), training.samples(), strict=False):
        sequence = sample.chosen if isinstance(sample, Pair) else sample
        sequences.append(sequence.token_ids)
        num_tokens += len(sequence.token_ids)
        if num_tokens >= MAX_TOKENS:
            break
    return np.concatenate(sequences)


def draw(token_ids: NDArray[np.integer], text: str, *, samples: int, length: int, seed: int) -> Tokens:
    """Up to `samples` sequences of `length` tokens, drawn without replacement by `seed`. Raises UsageError where there
    is text for less than two."""
    if samples < 1 or length < 2:
        raise UsageError("--samples is 1 or more, and --length 2 or more")
    if len(token_ids) < 2 * length:
        raise UsageError(
            f"the text has {len(token_ids)} tokens; two sequences of {length} are needed at least",
            hint="give more text with --data, or a smaller --length",
        )
    whole = token_ids[: len(token_ids) // length * length].astype(np.int64)
    sequences = torch.from_numpy(whole).view(-1, length)
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
    num_held_out = min(max(1, len(sequences) // HELD_OUT_EVERY), MAX_HELD_OUT)
    held_out, rest = order[:num_held_out], order[num_held_out:]
    return Tokens(sequences[rest[:samples]], sequences[held_out], text or "built-in")
