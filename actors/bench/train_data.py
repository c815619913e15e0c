"""The samples of `callboard bench train`: short conversations of 20 to 400 tokens, the same for everyone.

Ours reads them as a file of messages, as users have it; peers get the very tokens that come of it, in our order.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

from ..data.dataset import load_data
from ..data.options import DataOptions
from ..data.tokenized import Sequence
from ..models.tokenizer_loading import load_tokenizer
from .errors import BenchFailed
from .sample_text import sample_texts
from .train_rows import LEAST_TOKENS, MOST_TOKENS

TEXT_CHARS = 100_000
# Of what is asked, in a sample's tokens; the rest is the answer, which carries the loss.
ASKED = 1 / 3


def write_samples(folder: Path, into: Path, number: int, seed: int) -> tuple[Path, Path]:
    """Of the model in `folder`: (a file of messages for us, a file of tokens and labels for peers)."""
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(sample_texts(TEXT_CHARS, TEXT_CHARS)[0])
    numbers = random.Random(seed)

    def some(count: int) -> str:
        while True:
            start = numbers.randrange(len(ids) - count)
            text = tokenizer.decode(ids[start : start + count])
            if text.strip():  # a turn says something
                return text

    def messages(asked: int, answered: int) -> dict[str, object]:
        turns = (("system", ""), ("user", some(asked)), ("assistant", some(answered)))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    data, samples = into / "chats.jsonl", into / "samples.jsonl"
    frame = into / "frame.jsonl"
    frame.write_text(json.dumps(messages(1, 1)) + "\n")
    around = len(_sequences(frame, folder, seed, 1)[0].token_ids) - 2
    lines: list[str] = []
    for _ in range(number):
        inside = max(2, numbers.randint(LEAST_TOKENS, MOST_TOKENS) - around)
        asked = max(1, round(inside * ASKED))
        lines.append(json.dumps(messages(asked, inside - asked)))
    data.write_text("\n".join(lines) + "\n")
    with samples.open("w") as file:
        for sequence in _sequences(data, folder, seed, number):
            token_ids = sequence.token_ids.tolist()
            labels = [token if loss else -100 for token, loss in zip(token_ids, sequence.loss_mask, strict=True)]
            print(json.dumps({"input_ids": token_ids, "labels": labels}), file=file)
    return data, samples


def _sequences(data: Path, folder: Path, seed: int, number: int) -> list[Sequence]:
    """The first `number` samples in the order in which a run of this seed takes them."""
    loaded = load_data(str(data), folder, DataOptions(max_tokens=MOST_TOKENS), seed=seed)
    drawn = itertools.islice(loaded.mixture.samples(), number)
    found = [loaded.parts[each.part][each.sample] for each in drawn]
    sequences = [sample for sample in found if isinstance(sample, Sequence)]
    if len(sequences) != number:
        raise BenchFailed(f"{data} has {len(sequences)} samples, not {number}")
    return sequences
