"""How a sequence's next token is drawn: penalties, bias, `min_tokens`, and that rows do not see each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.actors.serve.draw_plan import DrawPlan
from callboard.actors.serve.replica_sequence import ReplicaSequence
from callboard.actors.serve.sampling import uniform
from callboard.actors.serve.token_counts import TokenCounts
from callboard.kernels import reference
from callboard.schemas.serve_steps import Sampling, SequenceStart

VOCAB_SIZE = 40
token = st.integers(0, VOCAB_SIZE - 1)


def sequence(prompt: list[int], generated: list[int] | None = None, **sampling: Any) -> ReplicaSequence:
    start = SequenceStart(
        token_ids=(*prompt, *(generated or ())), num_prompt_tokens=len(prompt), sampling=Sampling(**sampling)
    )
    return ReplicaSequence(1, start, 0, None)


def drawn(logits: torch.Tensor, *sequences: ReplicaSequence) -> list[int]:
    plan = DrawPlan()
    for one in sequences:
        plan.add(one)
    return plan.draw(logits.clone()).tokens


def expected_token(logits: torch.Tensor, one: ReplicaSequence) -> int:
    """The same by the words of the schema, token by token, in float64."""
    sampling, prompt, generated = one.sampling, one.tokens[: one.num_prompt], one.tokens[one.num_prompt :]
    adjusted = logits.double().clone()
    for token_id in range(VOCAB_SIZE):
        if token_id in prompt or token_id in generated:
            value = adjusted[token_id]
            penalty = sampling.repetition_penalty
            adjusted[token_id] = value / penalty if value > 0 else value * penalty
        if token_id in generated:
            adjusted[token_id] -= sampling.presence_penalty
            adjusted[token_id] -= sampling.frequency_penalty * generated.count(token_id)
        adjusted[token_id] += sum(value for biased, value in sampling.logit_bias if biased == token_id)
        if len(generated) < sampling.min_tokens and token_id in sampling.stop_ids:
            adjusted[token_id] = float("-inf")
    number = uniform(sampling.seed, len(generated)) if sampling.temperature else 0.0
    values = (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, number)
    columns = [torch.tensor([value]) if isinstance(value, int) else torch.tensor([value]).double() for value in values]
    return int(reference.sample(adjusted[None], *columns))


samplings = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5, 1.5]),
        "top_k": st.integers(0, 10),
        "top_p": st.sampled_from([1.0, 0.7]),
        "min_p": st.sampled_from([0.0, 0.05]),
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.8]),
        "presence_penalty": st.sampled_from([0.0, 0.7, -0.5]),
        "frequency_penalty": st.sampled_from([0.0, 0.4]),
        "logit_bias": st.lists(st.tuples(token, st.sampled_from([-3.0, 2.5])), max_size=4).map(tuple),
        "min_tokens": st.integers(0, 6),
        "stop_ids": st.lists(token, max_size=3, unique=True).map(tuple),
        "seed": st.integers(0, 2**40),
    }
)
sequences = st.builds(
    lambda prompt, generated, sampling: sequence(prompt, generated, **sampling),
    st.lists(token, min_size=1, max_size=12),
    st.lists(token, max_size=8),
    samplings,
)


@settings(max_examples=150)
@given(st.lists(sequences, min_size=1, max_size=5), st.integers(0, 2**32))
def test_every_parameter_does_what_the_schema_says_whatever_the_other_rows_are(
    batch: list[ReplicaSequence], seed: int
) -> None:
    torch.manual_seed(seed)
    logits = 2 * torch.randn(len(batch), VOCAB_SIZE)
    assert drawn(logits, *batch) == [expected_token(row, one) for row, one in zip(logits, batch, strict=True)]


@settings(max_examples=60)
@given(sequences, st.lists(token, min_size=1, max_size=5), st.integers(0, 2**32))
def test_past_a_guess_a_token_is_drawn_as_if_the_guess_had_been(
    one: ReplicaSequence, guesses: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    logits = 2 * torch.randn(1, VOCAB_SIZE)
    before = drawn(logits, one)
    guesses = [guess for guess in guesses if guess not in one.stop_ids]
    ahead = []
    for guess in guesses:
        assert one.advance(guess)
        ahead.append(drawn(logits, one))
    one.retreat()
    assert drawn(logits, one) == before
    for guess, expected in zip(guesses, ahead, strict=True):
        one.append(guess)
        assert drawn(logits, one) == expected == [expected_token(logits[0], one)]


def test_nothing_is_guessed_behind_a_stop_token() -> None:
    one = sequence([1, 2], stop_ids=(5,))
    assert one.advance(3)
    assert not one.advance(5)
    one.retreat()
    assert one.append(5)


@given(st.lists(token, max_size=30), st.lists(token, max_size=200))
def test_counts_are_those_of_the_tokens(prompt: list[int], generated: list[int]) -> None:
    counts = TokenCounts(prompt, generated[:3])
    for one in generated[3:]:
        counts.add(one)
    assert counts.ids.tolist() == list(dict.fromkeys(prompt + generated))
    assert counts.generated.tolist() == [generated.count(one) for one in counts.ids.tolist()]


def test_many_different_tokens_outgrow_the_first_arrays() -> None:
    counts = TokenCounts([1, 2], range(500))
    assert np.array_equal(np.sort(counts.ids), np.arange(500))
    assert counts.generated.sum() == 500


def test_a_plain_batch_is_one_argmax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.kernels.ops.sample", lambda *_: pytest.fail("not needed"))
    logits = torch.randn(3, VOCAB_SIZE)
    assert drawn(logits, *(sequence([1]) for _ in range(3))) == logits.argmax(-1).tolist()
