"""transformers' continuous batching: `python serve_transformers_cb.py FOLDER CACHE_MIB MAX_LENGTH`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from orders import Batch, Outcome, serve
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

PAGE_TOKENS = 256
# More than any row needs; its work space grows with their number.
MOST_PAGES = 256


def load() -> Callable[[Batch], Outcome]:
    cache_bytes = int(sys.argv[2]) << 20
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    shape = model.config
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    page_bytes = 2 * 2 * shape.num_hidden_layers * shape.num_key_value_heads * head_dim * PAGE_TOKENS
    # Left alone it takes nearly all of the machine's memory.
    num_pages = min(MOST_PAGES, max(1, cache_bytes // page_bytes))
    batching = ContinuousBatchingConfig(page_size=PAGE_TOKENS, num_blocks=num_pages)

    def generate(batch: Batch) -> Outcome:
        # No token ends an answer before its length.
        config = GenerationConfig(max_new_tokens=batch.output, do_sample=False, eos_token_id=-1, pad_token_id=0)
        began = time.perf_counter()
        answers = model.generate_batch(
            batch.prompts(), generation_config=config, continuous_batching_config=batching, record_timestamps=True
        )
        seconds = time.perf_counter() - began
        done = list(answers.values())
        if errors := [answer.error for answer in done if answer.error]:
            raise RuntimeError(errors[0])
        firsts = [answer.timestamps[0] - began for answer in done if answer.timestamps]
        return Outcome(seconds, [list(answer.generated_tokens) for answer in done], firsts)

    return generate


if __name__ == "__main__":
    serve(load, "transformers", "torch")
