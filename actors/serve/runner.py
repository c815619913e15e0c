"""What a replica computes: one step over the decoder and its cache. Blocking; one thread at a time."""

from __future__ import annotations

import time

import torch

from ...kernels import ops
from ...kernels.ragged import RaggedBatch
from ...schemas.serve import Sampling, Step, StepResult
from ..models.kv_cache import KVCache
from ..models.llama import LlamaDecoder


class Runner:
    """A decoder and its paged cache. Keeps nothing between steps but the cache."""

    def __init__(self, decoder: LlamaDecoder, num_blocks: int, block_size: int) -> None:
        self.decoder = decoder
        self.cache = KVCache(decoder.config, num_blocks, block_size, decoder.dtype)

    @torch.inference_mode()
    def execute(self, step: Step) -> StepResult:
        """Compute the step's tokens, write their keys and values, and draw the next tokens that it wants."""
        began = time.perf_counter()
        hidden = self.decoder(*self._inputs(step))
        rows, wanted = self._wanted(step)
        tokens = self._draw(hidden[rows], wanted) if wanted else ()
        return StepResult(step.step_id, tokens, time.perf_counter() - began)

    def _inputs(self, step: Step) -> tuple[torch.Tensor, KVCache, RaggedBatch]:
        sequences = step.sequences
        token_ids = torch.tensor([token for sequence in sequences for token in sequence.token_ids])
        batch = RaggedBatch.build(
            [sequence.num_cached + len(sequence.token_ids) for sequence in sequences],
            [len(sequence.token_ids) for sequence in sequences],
            [sequence.blocks for sequence in sequences],
            self.cache.block_size,
        )
        return token_ids, self.cache, batch

    @staticmethod
    def _wanted(step: Step) -> tuple[list[int], list[Sampling]]:
        """The rows of hidden states that a token is drawn from (each sequence's last), and how."""
        rows: list[int] = []
        wanted: list[Sampling] = []
        end = 0
        for sequence in step.sequences:
            end += len(sequence.token_ids)
            if sequence.sampling is not None:
                rows.append(end - 1)
                wanted.append(sequence.sampling)
        return rows, wanted

    def _draw(self, hidden: torch.Tensor, wanted: list[Sampling]) -> tuple[int, ...]:
        tokens = ops.sample(
            self.decoder.logits(hidden),
            torch.tensor([sampling.temperature for sampling in wanted]),
            torch.tensor([sampling.top_k for sampling in wanted]),
            torch.tensor([sampling.top_p for sampling in wanted]),
            torch.tensor([sampling.uniform for sampling in wanted], dtype=torch.float64),
        )
        return tuple(tokens.tolist())
