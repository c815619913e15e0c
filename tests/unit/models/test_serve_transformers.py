"""Greedy answers of the whole engine, many at once, against plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from plain_transformers import reference_tokens, transformers_model
from serving import answers, idle, serving

from callboard.actors.models.loading import load_tokenizer
from callboard.actors.models.store import ModelStore
from callboard.actors.models.tokenizer import Tokenizer
from callboard.kernels import native
from callboard.schemas.serve import ChatMessage, Generate
from callboard.schemas.serve_stats import GetStats

pytestmark = pytest.mark.anyio

# Fast arithmetic rounds differently in another batch. Logits are those of transformers to within 1e-4
# (test_models_llama.py), so only two that lie within twice that may change places.
SMALL_GAP = 2e-4

QUESTIONS = (
    "What is the capital of France?",
    "Count from one to twenty.",
    "Write a short story about a lighthouse keeper who cannot sleep.",
    "Explain what a prime number is, and name three.",
)


@pytest.mark.slow
async def test_greedy_answers_of_smollm2_on_native_kernels_are_those_of_transformers(
    smollm2_store: ModelStore, smollm2_path: Path, smollm2_tokenizer: Tokenizer
) -> None:
    if why := native.unavailable():
        pytest.skip(f"no native kernels here: {why}")
    wanted = [Generate(messages=(ChatMessage("user", text),), max_tokens=32, ignore_eos=True) for text in QUESTIONS]
    options = {"models_folder": str(smollm2_store.root), "block_size": 16, "dtype": "float32", "threads": 2}
    async with serving("smollm2", **options) as scheduler:
        said = await answers(scheduler, wanted)
        stats = await scheduler.ask(GetStats())
        assert [replica.kernels for replica in stats.replicas] == ["native"]
    model = transformers_model(smollm2_path)
    for text, ids in zip(QUESTIONS, said, strict=True):
        prompt = smollm2_tokenizer.encode_chat([{"role": "user", "content": text}])
        assert ids == reference_tokens(model, prompt, 32)


async def test_fast_answers_differ_from_transformers_only_where_two_tokens_are_nearly_as_likely(
    tiny_path: Path,
) -> None:
    prompts = ["tell me " * (1 + i % 6) + str(i) for i in range(24)]
    wanted = [Generate(prompt=prompt, max_tokens=40, ignore_eos=True) for prompt in prompts]
    async with serving(tiny_path, num_blocks=400, max_batch_tokens=40, max_running=24) as scheduler:
        said = await answers(scheduler, wanted)
        stats = await idle(scheduler)
        assert [replica.kernels for replica in stats.replicas] == ["torch"]
        assert stats.steps < stats.generated_tokens // 8
    model, tokenizer = transformers_model(tiny_path), load_tokenizer(tiny_path)
    num_same = 0
    for text, ids in zip(prompts, said, strict=True):
        prompt = tokenizer.encode(text)
        expected = reference_tokens(model, prompt, len(ids))
        place = next((place for place in range(len(ids)) if ids[place] != expected[place]), None)
        if place is None:
            num_same += 1
            continue
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + expected[:place]])).logits[0, -1]
        best = logits.topk(2)
        assert set(best.indices.tolist()) == {ids[place], expected[place]}
        assert float(best.values[0] - best.values[1]) < SMALL_GAP
    assert num_same > len(prompts) // 2
