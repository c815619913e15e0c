"""Sequences of tokens from texts: some to look at activations with, others to hold the result against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ...runtime.errors import UsageError
from .texts import read_texts

BUILT_IN = Path(__file__).with_name("calibration.txt")
# One sequence in so many is held out, and at least one.
HELD_OUT_EVERY = 8
MAX_HELD_OUT = 16


class Tokens(NamedTuple):
    """Both int64 [num_seqs, length]; no token is in both. `text`: where they came from."""

    calibration: torch.Tensor
    held_out: torch.Tensor
    text: str


def sample(
    encode: Callable[[str], Sequence[int]], data: Path | None, *, samples: int, length: int, seed: int
) -> Tokens:
    """Up to `samples` sequences of `length` tokens, drawn without replacement by `seed` from the texts of `data` (None:
    the built-in text), laid end to end. Raises UsageError where there is text for less than two."""
    if samples < 1 or length < 2:
        raise UsageError("--samples is 1 or more, and --length 2 or more")
    texts = read_texts(data or BUILT_IN)
    ids = [token for text in texts for token in encode(text)]
    if len(ids) < 2 * length:
        raise UsageError(
            f"the text has {len(ids)} tokens; two sequences of {length} are needed at least",
            hint="give more text with --data, or a smaller --length",
        )
    sequences = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
    num_held_out = min(max(1, len(sequences) // HELD_OUT_EVERY), MAX_HELD_OUT)
    held_out, rest = order[:num_held_out], order[num_held_out:]
    return Tokens(sequences[rest[:samples]], sequences[held_out], str(data) if data else "built-in")
