"""What is drawn through the whole engine is distributed as plain transformers' logits say, under every kind of cut."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import anyio
import pytest
import torch
from plain_transformers import transformers_model
from serving import serving

from callboard.schemas.serve import Generate

pytestmark = pytest.mark.anyio

PROMPT_IDS = (10, 20, 30, 40, 50)
NUM_REQUESTS, NUM_CHOICES = 32, 64
SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 12},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
]


def expected(logits: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
    """The distribution that is left by the cuts, one after another, each over what the one before it left."""
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_k:
        probabilities[probabilities < probabilities.topk(top_k).values[-1]] = 0
    probabilities /= probabilities.sum()
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    probabilities[order[before >= top_p]] = 0
    probabilities[probabilities < min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


def chi_square_bound(degrees: int) -> float:
    """What 99.9% of chi-square samples stay below (the cube-root approximation of Wilson and Hilferty)."""
    spread = 2 / (9 * degrees)
    return degrees * (1 - spread + 3.0902 * math.sqrt(spread)) ** 3


async def test_draws_are_distributed_as_transformers_says(tiny_path: Path) -> None:
    with torch.inference_mode():
        logits = transformers_model(tiny_path)(torch.tensor([PROMPT_IDS])).logits[0, -1]
    counts = [Counter[int]() for _ in SETTINGS]

    async with serving(tiny_path, max_waiting=len(SETTINGS) * NUM_CHOICES) as scheduler:

        async def draw(index: int, seed: int) -> None:
            request = Generate(
                prompt_ids=PROMPT_IDS, max_tokens=1, n=NUM_CHOICES, seed=seed, ignore_eos=True, **SETTINGS[index]
            )
            completion = await scheduler.ask(request)
            counts[index].update(choice.token_ids[0] for choice in completion.choices)

        for seed in range(NUM_REQUESTS):
            async with anyio.create_task_group() as group:
                for index in range(len(SETTINGS)):  # side by side in every batch
                    group.start_soon(draw, index, seed)

    total = NUM_REQUESTS * NUM_CHOICES
    for settings, drawn in zip(SETTINGS, counts, strict=True):
        wanted = expected(logits, **settings) * total
        assert drawn.total() == total
        assert all(wanted[token] > 0 for token in drawn), settings
        # Cells that few draws are expected in count as one.
        cells = [(drawn[token], count) for token, count in enumerate(wanted.tolist()) if count >= 5]
        rest = (total - sum(seen for seen, _ in cells), total - sum(count for _, count in cells))
        cells += [rest] if rest[1] >= 5 else []
        chi_square = sum((seen - count) ** 2 / count for seen, count in cells)
        assert chi_square < chi_square_bound(len(cells) - 1), settings
