"""Sampling: the fast path draws what the reference draws, rows do not see each other, and frequencies are right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels import cpu, ops, reference


def parameters(
    rows: list[tuple[float, int, float, float]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    temperature, top_k, top_p, uniform = zip(*rows, strict=True)
    return (
        torch.tensor(temperature, dtype=torch.float64),
        torch.tensor(top_k),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(uniform, dtype=torch.float64),
    )


rows = st.tuples(
    st.one_of(st.just(0.0), st.floats(0.05, 5)),
    st.one_of(st.just(0), st.integers(1, 60)),
    st.one_of(st.just(1.0), st.floats(0.01, 0.99)),
    st.floats(0, 1, exclude_max=True),
)


@settings(max_examples=100)
@given(st.lists(rows, min_size=1, max_size=6), st.integers(1, 50), st.integers(0, 2**32), st.booleans())
def test_the_fast_path_draws_what_the_reference_draws(
    drawn: list[tuple[float, int, float, float]], vocab_size: int, seed: int, ties: bool
) -> None:
    torch.manual_seed(seed)
    logits = 3 * torch.randn(len(drawn), vocab_size, dtype=torch.float64)
    logits = logits.round() if ties else logits
    tokens = ops.sample(logits, *parameters(drawn))
    assert torch.equal(tokens, reference.sample(logits, *parameters(drawn)))


@settings(max_examples=30)
@given(st.lists(rows, min_size=2, max_size=6), st.integers(0, 2**32))
def test_a_row_draws_the_same_alone_as_among_others(drawn: list[tuple[float, int, float, float]], seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(len(drawn), 3000)
    together = ops.sample(logits, *parameters(drawn))
    alone = [ops.sample(logits[i : i + 1], *parameters([row])) for i, row in enumerate(drawn)]
    assert torch.equal(together, torch.cat(alone))


def test_more_candidates_than_are_sorted_first_are_found() -> None:
    """A flat distribution: 90% of it is far more tokens than the quick look at the likeliest ones holds."""
    vocab_size = 4 * cpu.TOP_P_CANDIDATES
    logits = 1e-3 * torch.randn(2, vocab_size, dtype=torch.float64)
    drawn = [(1.0, 0, 0.9, 0.95), (1.0, 0, 1.0, 0.5)]
    assert torch.equal(ops.sample(logits, *parameters(drawn)), reference.sample(logits, *parameters(drawn)))


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, -1.0, 5.0]])
    assert ops.sample(logits, *parameters([(0.0, 0, 1.0, 0.9), (0.0, 0, 1.0, 0.9)])).tolist() == [1, 0]


def test_top_k_one_and_a_tiny_top_p_are_greedy() -> None:
    logits = torch.randn(50, 200, dtype=torch.float64)
    uniform = torch.rand(50).tolist()
    for top_k, top_p in ((1, 1.0), (0, 1e-9)):
        drawn = ops.sample(logits, *parameters([(1.5, top_k, top_p, number) for number in uniform]))
        assert torch.equal(drawn, logits.argmax(-1))


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.8)])
def test_frequencies_are_those_of_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    """Stratified numbers: each token comes up as often as its probability says, to within one draw."""
    torch.manual_seed(1)
    num_draws = 20_000
    logits = torch.randn(12, dtype=torch.float64)
    probabilities = (logits / temperature).softmax(0)
    if top_k:
        probabilities = probabilities.where(probabilities >= probabilities.topk(top_k).values[-1], 0)
    if top_p < 1:
        ordered, index = probabilities.sort(descending=True)
        probabilities[index[ordered.cumsum(0) - ordered >= top_p]] = 0
    probabilities /= probabilities.sum()
    numbers = ((torch.arange(num_draws) + 0.5) / num_draws).tolist()
    drawn = ops.sample(
        logits.expand(num_draws, -1), *parameters([(temperature, top_k, top_p, number) for number in numbers])
    )
    counts = torch.bincount(drawn, minlength=12)
    assert torch.allclose(counts.double(), probabilities * num_draws, atol=1.0)
