"""transformers' `generate` over the whole batch: `python serve_transformers.py FOLDER CACHE_MIB MAX_LENGTH`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from orders import Batch, Outcome, serve
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList


class FirstToken(StoppingCriteria):
    """Stops nothing: notes when the first token of the batch was there."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        if self.at is None:
            self.at = time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def load() -> Callable[[Batch], Outcome]:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()

    def generate(batch: Batch) -> Outcome:
        first = FirstToken()
        began = time.perf_counter()
        prompts = torch.tensor(batch.prompts())
        with torch.inference_mode():
            # Nothing is padded, since the prompts of a batch are of one length.
            ids = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                min_new_tokens=batch.output,
                max_new_tokens=batch.output,
                stopping_criteria=StoppingCriteriaList([first]),
            )
        seconds = time.perf_counter() - began
        assert first.at is not None
        return Outcome(seconds, ids[:, batch.prompt :].tolist(), [first.at - began] * batch.size)

    return generate


if __name__ == "__main__":
    serve(load, "transformers", "torch")
