"""The computing side of the engine: a step at a time, over a tiny random model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.models.loading import load_model, load_tokenizer
from callboard.actors.models.served import ModelOptions, ServedModel
from callboard.actors.serve.block_tables import BlockTables
from callboard.actors.serve.draft_ngram import NgramDrafter
from callboard.actors.serve.grammar import grammar_compiler
from callboard.actors.serve.runner import Runner
from callboard.kernels.ragged import RaggedBatch
from callboard.schemas.serve import Pooling
from callboard.schemas.serve_steps import Sampling, SequenceStart, Step, StepSequence

Drive = Callable[..., Any]


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> ServedModel:
    return load_model(tiny_path, ModelOptions())


@pytest.fixture
def runner(model: ServedModel, tiny_path: Path) -> Runner:
    return Runner(model, 64, 4, lambda: grammar_compiler(load_tokenizer(tiny_path), model.vocab_size))


def start(length: int, seed: int = 0, **fields: Any) -> SequenceStart:
    """A prompt of random tokens."""
    generator = torch.Generator().manual_seed(1000 * length + seed)
    tokens = tuple(torch.randint(2, 250, (length,), generator=generator).tolist())
    return SequenceStart(token_ids=tokens, num_prompt_tokens=length, **fields)


@torch.inference_mode()
def logits_of(model: ServedModel, tokens: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states, logits) of a whole text at once, [num_tokens, ...]."""
    cache = model.new_cache(-(-len(tokens) // 4), 4)
    batch = RaggedBatch.build([len(tokens)], [len(tokens)], [range(cache.num_blocks)], 4)
    hidden = model.forward(torch.tensor(tokens), cache, batch)
    return hidden, model.logits(hidden)


def greedy(model: ServedModel, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
    """By computing everything anew for each token."""
    tokens = prompt
    for _ in range(num_tokens):
        tokens = (*tokens, int(logits_of(model, tokens)[1][-1].argmax()))
    return list(tokens[len(prompt) :])


@pytest.mark.parametrize(("chunk", "preempt_every"), [(1000, 0), (3, 0), (5, 4)])
def test_greedy_tokens_are_those_of_the_whole_text_at_once(
    runner: Runner, model: ServedModel, drive: Drive, chunk: int, preempt_every: int
) -> None:
    starts = [start(length) for length in (1, 4, 5, 17)]
    answers = drive(runner, chunk=chunk, preempt_every=preempt_every).run(starts, 12)
    assert [answer.tokens for answer in answers] == [greedy(model, one.token_ids, 12) for one in starts]


def test_a_step_sent_ahead_goes_on_with_the_token_that_the_one_before_it_draws(
    runner: Runner, model: ServedModel
) -> None:
    """The second step is written before the first is computed."""
    one = start(6)
    steps = [
        Step(1, (StepSequence(1, 0, 6, (5, 9), True, start=one),)),
        Step(2, (StepSequence(1, 6, 1, (), True),)),
        Step(3, (StepSequence(1, 7, 1, (2,), True),)),
    ]
    drawn = [token for step in steps for part in runner.execute(step).drawn for token in part.tokens]
    assert drawn == greedy(model, one.token_ids, 3)


def test_sampled_tokens_depend_on_the_seed_alone(runner: Runner, drive: Drive) -> None:
    starts = [start(5, sampling=Sampling(temperature=1.2, top_p=0.95, min_p=0.01, seed=seed)) for seed in (1, 1, 2)]
    crowd = [start(length, sampling=Sampling(temperature=0.8, seed=length)) for length in (1, 9, 30)]
    together = drive(runner, chunk=4, preempt_every=3).run([*crowd, *starts], 15)[3:]
    alone = [drive(runner).run([one], 15)[0] for one in starts]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert alone[0].tokens == alone[1].tokens != alone[2].tokens


@pytest.mark.parametrize("chunk", [1000, 3])
def test_prompt_tokens_are_scored_across_chunk_borders(
    runner: Runner, model: ServedModel, drive: Drive, chunk: int
) -> None:
    one = start(11, prompt_logprobs=2)
    answer = drive(runner, chunk=chunk).run([one, start(4)])[0]
    logits = logits_of(model, one.token_ids)[1].log_softmax(-1)
    assert list(answer.prompt_logprobs) == list(range(1, 11))
    for place, scored in answer.prompt_logprobs.items():
        expected = logits[place - 1]
        assert scored.token_id == one.token_ids[place]
        assert scored.logprob == pytest.approx(float(expected[scored.token_id]), abs=1e-4)
        top = expected.topk(2)
        assert [token for token, _ in scored.top] == top.indices.tolist()
        assert [logprob for _, logprob in scored.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_a_long_prompt_is_scored_in_pieces(
    model: ServedModel, drive: Drive, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    logits = model.logits

    def counted(hidden: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        rows.append(len(hidden))
        return logits(hidden, deterministic)

    monkeypatch.setattr(model, "logits", counted)
    answer = drive(runner).run([start(200, prompt_logprobs=0)])[0]
    assert sum(rows) == len(answer.prompt_logprobs) == 199
    assert max(rows) == 64


@pytest.mark.parametrize("chunk", [1000, 4])
def test_hidden_states_are_pooled_over_the_whole_text(
    runner: Runner, model: ServedModel, drive: Drive, chunk: int
) -> None:
    starts = [start(length, pooling=pooling) for length in (1, 9) for pooling in Pooling]
    answers = drive(runner, chunk=chunk).run(starts)
    for one, answer in zip(starts, answers, strict=True):
        hidden = logits_of(model, one.token_ids)[0]
        expected = hidden[-1] if one.pooling is Pooling.LAST else hidden.mean(0)
        assert answer.vector == pytest.approx(expected.tolist(), abs=1e-5)
        assert answer.tokens == []


def test_logprobs_are_those_of_the_models_own_distribution(runner: Runner, model: ServedModel, drive: Drive) -> None:
    sampling = Sampling(temperature=2.0, top_k=5, presence_penalty=1.0, logit_bias=((7, 3.0),), seed=3, logprobs=3)
    one = start(5, sampling=sampling)
    plain = start(6, sampling=Sampling(logprobs=0))
    answer, other = drive(runner).run([one, plain], 6)
    tokens = one.token_ids
    for token, reported in zip(answer.tokens, answer.logprobs, strict=True):
        expected = logits_of(model, tokens)[1][-1].log_softmax(-1)
        assert reported.token_id == token
        assert reported.logprob == pytest.approx(float(expected[token]), abs=1e-4)
        assert [top for top, _ in reported.top] == expected.topk(3).indices.tolist()
        tokens = (*tokens, token)
    assert [reported.top for reported in other.logprobs] == [()] * 6


def test_a_sequence_that_cannot_be_computed_fails_alone(runner: Runner, model: ServedModel) -> None:
    one = start(6)
    bad = start(3, adapter="nobody")
    step = Step(1, (StepSequence(8, 0, 3, (1,), True, start=bad), StepSequence(9, 0, 6, (2, 3), True, start=one)))
    result = runner.execute(step)
    assert [failed.sequence_id for failed in result.failed] == [8]
    assert result.failed[0].code == "model.no_adapter"
    assert [drawn.tokens for drawn in result.drawn] == [(), tuple(greedy(model, one.token_ids, 1))]
    # A step that was already on its way is told the same, and the other goes on.
    again = runner.execute(Step(2, (StepSequence(8, 3, 1, (), True), StepSequence(9, 6, 1, (), True))))
    assert [failed.code for failed in again.failed] == ["serve.unknown_sequence"]
    assert [len(drawn.tokens) for drawn in again.drawn] == [0, 1]


def test_a_model_whose_numbers_are_not_finite_fails_what_it_computes(
    runner: Runner, model: ServedModel, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = model.logits

    def broken(hidden: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        rows = logits(hidden, deterministic)
        rows[0] = float("nan")
        return rows

    monkeypatch.setattr(model, "logits", broken)
    starts = [start(4, sampling=Sampling(temperature=1.0, logprobs=1)), start(5)]
    first, second = drive(runner).run(starts, 1)
    assert first.failed.code == "serve.nothing_to_draw"
    assert len(second.tokens) == 1


def test_what_contradicts_the_replicas_books_is_no_step(runner: Runner) -> None:
    one = start(6)
    runner.execute(Step(1, (StepSequence(1, 0, 4, (0, 1), start=one),)))
    for bad in (
        StepSequence(1, 4, 3, (), True),  # a token that nobody has drawn
        StepSequence(1, 4, 1, (), True),  # draws before its last token
        StepSequence(1, 4, 0),
        StepSequence(2, 0, 6, (2,), True, start=one),  # six tokens in a block of four
    ):
        with pytest.raises(ValueError, match="cannot be computed"):
            runner.execute(Step(2, (bad,)))


def test_what_is_forgotten_leaves_nothing_behind(runner: Runner) -> None:
    one = start(6)
    runner.execute(Step(1, (StepSequence(1, 0, 6, (0, 1), True, start=one),)))
    assert runner.num_sequences == 1
    runner.execute(Step(2, (StepSequence(1, 0, 6, (4, 3), True, start=one),), forget=(1, 99)))
    assert runner.num_sequences == 1
    assert runner.execute(Step(3, (), forget=(1,))).drawn == ()
    assert runner.num_sequences == 0


class TwoWays:
    """A model that writes down how each forward pass was asked for."""

    def __init__(self, model: ServedModel, batch_invariant: bool) -> None:
        self._model = model
        self.batch_invariant = batch_invariant
        self.calls: list[tuple[int, bool]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward(self, token_ids: torch.Tensor, cache: Any, batch: Any, adapters: Any, deterministic: bool) -> Any:
        self.calls.append((batch.num_seqs, deterministic))
        return self._model.forward(token_ids, cache, batch, adapters, deterministic)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_deterministic_sequences_are_computed_apart_unless_all_arithmetic_is(
    model: ServedModel, drive: Drive, batch_invariant: bool
) -> None:
    two_ways = TwoWays(model, batch_invariant)
    runner = Runner(two_ways, 64, 4, lambda: pytest.fail("no grammar here"))  # type: ignore[arg-type]
    starts = [start(5, deterministic=True), start(6), start(7, deterministic=True)]
    answers = drive(runner).run(starts, 2)
    assert [answer.tokens for answer in answers] == [greedy(model, one.token_ids, 2) for one in starts]
    assert two_ways.calls == ([(3, False)] * 2 if batch_invariant else [(1, False), (2, True)] * 2)


@pytest.mark.slow
def test_drawn_tokens_follow_the_models_distribution(runner: Runner, model: ServedModel) -> None:
    """Many seeds after one prompt, against the exact probabilities by a chi-square over the likeliest tokens."""
    prompt = start(7).token_ids
    num_draws, temperature, top_k, min_p = 2000, 1.4, 12, 0.05
    logits = logits_of(model, prompt)[1][-1].double() / temperature
    probabilities = logits.softmax(-1)
    probabilities[probabilities < probabilities.topk(top_k).values[-1]] = 0
    probabilities[probabilities < min_p * probabilities.max()] = 0
    probabilities /= probabilities.sum()
    counts = torch.zeros_like(probabilities)
    for first in range(0, num_draws, 500):
        parts = tuple(
            StepSequence(
                seed,
                0,
                7,
                (0, 1),
                True,
                start=SequenceStart(
                    token_ids=prompt,
                    num_prompt_tokens=7,
                    sampling=Sampling(temperature=temperature, top_k=top_k, min_p=min_p, seed=seed),
                ),
            )
            for seed in range(first, first + 500)
        )
        for part in parts:  # alone each, since all write the same blocks
            counts[runner.execute(Step(part.sequence_id + 1, (part,))).drawn[0].tokens[0]] += 1
        runner.execute(Step(0, (), forget=tuple(part.sequence_id for part in parts)))
    kept = probabilities > 0
    assert counts[~kept].sum() == 0
    expected = probabilities[kept] * num_draws
    chi_square = float(((counts[kept] - expected) ** 2 / expected).sum())
    degrees = int(kept.sum()) - 1
    assert degrees >= 5
    assert chi_square < chi_square_limit(degrees)


def chi_square_limit(degrees: int) -> float:
    """What 99.9% of true samples stay below (Wilson and Hilferty's approximation)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6), st.integers(1, 8))
def test_a_batch_from_arrays_is_the_one_from_lists(lengths: list[tuple[int, int]], block_size: int) -> None:
    seq_lens = [max(pair) for pair in lengths]
    query_lens = [min(pair) for pair in lengths]
    tables = [[17 * seq + block for block in range(-(-length // block_size))] for seq, length in enumerate(seq_lens)]
    expected = RaggedBatch.build(seq_lens, query_lens, tables, block_size)
    rows = BlockTables()
    taken = []
    for table in tables:
        taken.append(rows.take())
        rows.extend(taken[-1], table[:1])
        rows.extend(taken[-1], table[1:])
    width = max(map(len, tables))
    batch = RaggedBatch.from_arrays(np.array(seq_lens), np.array(query_lens), rows.cut(taken, width), block_size)
    for name in ("positions", "slots", "block_tables", "seq_lens", "query_starts"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
        assert getattr(batch, name).dtype == torch.int64


def test_block_tables_grow_and_rows_are_used_again() -> None:
    tables = BlockTables()
    rows = [tables.take() for _ in range(40)]
    assert len(set(rows)) == 40
    for row in rows:
        tables.extend(row, range(row, row + 150))
    assert tables.cut(rows, 150).tolist() == [list(range(row, row + 150)) for row in rows]
    tables.give_back(rows[7])
    assert tables.take() == rows[7]
    assert tables.num_blocks(rows[7]) == 0


def test_deterministic_answers_are_the_same_to_the_last_bit_in_any_company(
    model: ServedModel, runner: Runner, drive: Drive
) -> None:
    """Alone, among others, in chunks, after preemptions, and with guesses: tokens and log-probabilities."""
    samplings = [Sampling(logprobs=1), Sampling(temperature=0.9, seed=4, repetition_penalty=1.1, logprobs=0)]
    starts = [start(9, sampling=sampling, deterministic=True, prompt_logprobs=1) for sampling in samplings]
    alone = [drive(runner).run([one], 12)[0] for one in starts]
    crowd = [start(length, deterministic=length % 2 == 0) for length in (3, 8, 21)]
    guessing = Runner(model, 64, 4, lambda: pytest.fail("no grammar here"), NgramDrafter(), 4)
    for driver in (drive(runner), drive(runner, chunk=4, preempt_every=3), drive(guessing, num_draft=4)):
        together = driver.run([*crowd, *starts], 12)[3:]
        for one, other in zip(alone, together, strict=True):
            assert (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
            assert {place: one.prompt_logprobs[place] for place in range(1, 9)} == {
                place: other.prompt_logprobs[place] for place in range(1, 9)
            }
