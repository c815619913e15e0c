"""What a replica computes: one step over the decoder and its cache. Blocking; one thread at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...kernels import ops
from ...kernels.ragged import RaggedBatch
from ...schemas.serve import (
    Drawn,
    Pooled,
    Pooling,
    PromptLogprobs,
    SequenceStart,
    Step,
    StepResult,
    StepSequence,
    TokenLogprob,
)
from ..models.kv_cache import KVCache
from ..models.llama import LlamaDecoder
from .sampling import uniform


@dataclass(eq=False)
class SequenceState:
    """What the replica knows of a sequence: what it was told at its start, and the tokens that it drew since."""

    start: SequenceStart
    token_ids: list[int]
    blocks: list[int]
    pooled: torch.Tensor | None = None


class Runner:
    """A decoder, its paged cache, and the sequences that are under way."""

    def __init__(self, decoder: LlamaDecoder, num_blocks: int, block_size: int) -> None:
        self.decoder = decoder
        self.cache = KVCache(decoder.config, num_blocks, block_size, decoder.dtype)
        self._sequences: dict[int, SequenceState] = {}

    @torch.inference_mode()
    def execute(self, step: Step) -> StepResult:
        """Compute the step's tokens, write their keys and values, and draw the next tokens that it wants."""
        began = time.perf_counter()
        for sequence_id in step.forget:
            self._sequences.pop(sequence_id, None)
        states = [self._state(part) for part in step.sequences]
        if not states:
            return StepResult(step.step_id, (), time.perf_counter() - began)
        hidden = self.decoder(*self._inputs(step, states))
        rows: list[torch.Tensor] = []
        end = 0
        for part in step.sequences:
            end += part.num_tokens
            rows.append(hidden[end - part.num_tokens : end])
        scored = [self._score(*args) for args in zip(step.sequences, states, rows, strict=True) if self._scores(*args)]
        pooled = [self._pool(*args) for args in zip(step.sequences, states, rows, strict=True) if args[1].start.pooling]
        wanted = [i for i, part in enumerate(step.sequences) if part.draws]
        drawn = self._draw(torch.stack([rows[i][-1] for i in wanted]), [states[i] for i in wanted]) if wanted else ()
        return StepResult(
            step.step_id,
            drawn,
            time.perf_counter() - began,
            tuple(scored),
            tuple(entry for entry in pooled if entry is not None),
        )

    def _state(self, part: StepSequence) -> SequenceState:
        if part.start is not None:
            self._sequences[part.sequence_id] = SequenceState(part.start, list(part.start.token_ids), [])
        state = self._sequences[part.sequence_id]
        state.blocks += part.new_blocks
        return state

    def _inputs(self, step: Step, states: list[SequenceState]) -> tuple[torch.Tensor, KVCache, RaggedBatch]:
        token_ids: list[int] = []
        for part, state in zip(step.sequences, states, strict=True):
            token_ids += state.token_ids[part.num_cached : part.num_cached + part.num_tokens]
        batch = RaggedBatch.build(
            [part.num_cached + part.num_tokens for part in step.sequences],
            [part.num_tokens for part in step.sequences],
            [state.blocks for state in states],
            self.cache.block_size,
        )
        return torch.tensor(token_ids), self.cache, batch

    @staticmethod
    def _scores(part: StepSequence, state: SequenceState, _: torch.Tensor) -> bool:
        return state.start.prompt_logprobs >= 0 and part.num_cached + 1 < len(state.start.token_ids)

    def _score(self, part: StepSequence, state: SequenceState, hidden: torch.Tensor) -> PromptLogprobs:
        first = part.num_cached + 1
        tokens = state.start.token_ids[first : first + part.num_tokens]
        logprobs = self.decoder.logits(hidden[: len(tokens)]).float().log_softmax(-1)
        entries = _entries(logprobs, tokens, state.start.prompt_logprobs)
        return PromptLogprobs(part.sequence_id, first, entries)

    def _pool(self, part: StepSequence, state: SequenceState, hidden: torch.Tensor) -> Pooled | None:
        total = hidden.float().sum(0)
        state.pooled = total if state.pooled is None else state.pooled + total
        num_tokens = len(state.start.token_ids)
        if part.num_cached + part.num_tokens < num_tokens:
            return None
        vector = hidden[-1] if state.start.pooling is Pooling.LAST else state.pooled / num_tokens
        return Pooled(part.sequence_id, tuple(vector.float().tolist()))

    def _draw(self, hidden: torch.Tensor, states: list[SequenceState]) -> tuple[Drawn, ...]:
        params = [state.start.sampling for state in states]
        indices = [len(state.token_ids) - state.start.num_prompt_tokens for state in states]
        logits = self.decoder.logits(hidden)
        cut = logits
        if any(p.min_tokens > i and p.stop_ids for p, i in zip(params, indices, strict=True)):
            cut = logits.clone()
            for row, (p, index) in enumerate(zip(params, indices, strict=True)):
                if index < p.min_tokens:
                    cut[row, list(p.stop_ids)] = float("-inf")
        numbers = [uniform(p.seed, i) if p.temperature > 0 else 0.0 for p, i in zip(params, indices, strict=True)]
        tokens = ops.sample(
            cut,
            torch.tensor([p.temperature for p in params]),
            torch.tensor([p.top_k for p in params]),
            torch.tensor([p.top_p for p in params]),
            torch.tensor(numbers, dtype=torch.float64),
        ).tolist()
        drawn: list[Drawn] = []
        for row, (state, token) in enumerate(zip(states, tokens, strict=True)):
            state.token_ids.append(token)
            count = params[row].logprobs
            logprobs = _entries(logits[row : row + 1].float().log_softmax(-1), [token], count) if count >= 0 else ()
            drawn.append(Drawn((token,), logprobs))
        return tuple(drawn)


def _entries(logprobs: torch.Tensor, tokens: Sequence[int], count: int) -> tuple[TokenLogprob, ...]:
    top = logprobs.topk(count) if count else None
    return tuple(
        TokenLogprob(
            token,
            float(logprobs[row, token]),
            tuple(zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)) if top is not None else (),
        )
        for row, token in enumerate(tokens)
    )
