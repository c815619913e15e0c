"""The decoder against plain transformers: the same logits and the same greedy tokens, however the work is divided."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plain_transformers import reference_tokens, transformers_model
from random_models import broken_weights
from transformers import LlamaForCausalLM

from callboard.actors.models.config import LlamaConfig
from callboard.actors.models.gguf import GGUFFile
from callboard.actors.models.kv_cache import KVCache
from callboard.actors.models.llama import LlamaDecoder
from callboard.actors.models.loading import load_decoder
from callboard.actors.models.tokenizer import Tokenizer
from callboard.actors.models.weights import gguf_weights
from callboard.kernels.ragged import RaggedBatch
from callboard.runtime.errors import ModelDamaged

BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def smollm2_transformers(smollm2_path: Path) -> LlamaForCausalLM:
    return transformers_model(smollm2_path)


@torch.inference_mode()
def greedy(decoder: LlamaDecoder, prompts: list[list[int]], num_tokens: int, chunk: int) -> list[list[int]]:
    """All prompts in one batch, `chunk` tokens of each in a step until they decode."""
    total = [len(prompt) + num_tokens for prompt in prompts]
    per_sequence = [-(-length // BLOCK_SIZE) for length in total]
    cache = KVCache(decoder.config, sum(per_sequence), BLOCK_SIZE, torch.float32)
    shuffled = torch.randperm(sum(per_sequence)).tolist()
    tables = [[shuffled.pop() for _ in range(count)] for count in per_sequence]
    tokens = [list(prompt) for prompt in prompts]
    num_computed = [0] * len(prompts)
    while any(len(sequence) < length for sequence, length in zip(tokens, total, strict=True)):
        new = [
            sequence[done : done + chunk] if len(sequence) < length else []
            for sequence, done, length in zip(tokens, num_computed, total, strict=True)
        ]
        num_computed = [done + len(part) for done, part in zip(num_computed, new, strict=True)]
        batch = RaggedBatch.build(num_computed, list(map(len, new)), tables, BLOCK_SIZE)
        hidden = decoder(torch.tensor([token for part in new for token in part]), cache, batch)
        last = decoder.logits(hidden[(batch.query_starts[1:] - 1).clamp(min=0)]).argmax(-1).tolist()
        for i, sequence in enumerate(tokens):
            if new[i] and num_computed[i] == len(sequence):
                sequence.append(last[i])
    return [sequence[len(prompt) :] for sequence, prompt in zip(tokens, prompts, strict=True)]


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_random_model_equal_those_of_transformers(
    make_tiny_model: Callable[..., Path], tmp_path: Path, tied: bool
) -> None:
    path = make_tiny_model(tmp_path / "tiny.gguf", seed=5, tied=tied)
    decoder, expected = load_decoder(path, torch.float32), transformers_model(path)
    prompt = torch.randint(0, decoder.config.vocab_size, (50,))
    cache = KVCache(decoder.config, 4, BLOCK_SIZE, torch.float32)
    with torch.inference_mode():
        batch = RaggedBatch.build([50], [50], [[3, 0, 2, 1]], BLOCK_SIZE)
        logits = decoder.logits(decoder(prompt, cache, batch))
        torch.testing.assert_close(logits, expected(prompt[None]).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("chunk", [7, 64])
def test_greedy_tokens_of_a_random_model_equal_those_of_transformers(tiny_path: Path, chunk: int) -> None:
    decoder, expected = load_decoder(tiny_path, torch.float32), transformers_model(tiny_path)
    torch.manual_seed(0)
    prompts = [torch.randint(2, decoder.config.vocab_size, (length,)).tolist() for length in (1, 15, 16, 17, 40)]
    batched = greedy(decoder, prompts, 24, chunk)
    assert batched == [reference_tokens(expected, prompt, 24) for prompt in prompts]


@pytest.mark.timeout(120)
def test_greedy_answers_of_smollm2_equal_those_of_transformers(
    smollm2_decoder: LlamaDecoder, smollm2_tokenizer: Tokenizer, smollm2_transformers: LlamaForCausalLM
) -> None:
    questions = ["What is the capital of France?", "Count: 1 2 3", "Write one line about the sea, please."]
    prompts = [smollm2_tokenizer.encode_chat([{"role": "user", "content": text}]) for text in questions]
    expected = [reference_tokens(smollm2_transformers, prompt, 12) for prompt in prompts]
    assert greedy(smollm2_decoder, prompts, 12, chunk=10) == expected
    assert [greedy(smollm2_decoder, [prompt], 12, chunk=512)[0] for prompt in prompts] == expected
    assert "Paris" in smollm2_tokenizer.decode(expected[0])


def test_missing_unknown_misshapen_and_infinite_weights_are_damage(tiny_path: Path) -> None:
    with GGUFFile(tiny_path) as file:
        config = LlamaConfig.from_gguf(file)
        weights = dict(gguf_weights(file, config))
    for complaint, candidate in broken_weights(weights).items():
        with pytest.raises(ModelDamaged, match=complaint):
            LlamaDecoder(config, torch.float32).load_weights(candidate.items())
