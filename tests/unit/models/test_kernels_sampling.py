"""Sampling: the fast path draws what the reference draws, rows do not see each other, and frequencies are right."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels import native, native_sampling, ops, plain, plain_sampling, reference
from callboard.kernels.weights import NativeEngine

Row = tuple[float, int, float, float, float]


def parameters(rows: list[Row]) -> tuple[torch.Tensor, ...]:
    """temperature, top_k, top_p, min_p, uniform."""
    temperature, top_k, top_p, min_p, uniform = zip(*rows, strict=True)
    return (
        torch.tensor(temperature, dtype=torch.float64),
        torch.tensor(top_k),
        torch.tensor(top_p, dtype=torch.float64),
        torch.tensor(min_p, dtype=torch.float64),
        torch.tensor(uniform, dtype=torch.float64),
    )


rows = st.tuples(
    st.one_of(st.just(0.0), st.floats(0.05, 5)),
    st.one_of(st.just(0), st.integers(1, 60)),
    st.one_of(st.just(1.0), st.floats(0.01, 0.99)),
    st.one_of(st.just(0.0), st.floats(0.001, 1)),
    st.floats(0, 1, exclude_max=True),
)


@settings(max_examples=100)
@given(st.lists(rows, min_size=1, max_size=6), st.integers(1, 50), st.integers(0, 2**32), st.booleans(), st.booleans())
def test_the_fast_path_draws_what_the_reference_draws(
    drawn: list[Row], vocab_size: int, seed: int, ties: bool, masked: bool
) -> None:
    torch.manual_seed(seed)
    logits = 3 * torch.randn(len(drawn), vocab_size, dtype=torch.float64)
    logits = logits.round() if ties else logits
    if masked:
        logits[:, torch.randperm(vocab_size)[: vocab_size // 2]] = float("-inf")
    tokens = ops.sample(logits, *parameters(drawn))
    assert torch.equal(tokens, reference.sample(logits, *parameters(drawn)))
    assert logits.gather(1, tokens[:, None]).isfinite().all()


@settings(max_examples=30)
@given(st.lists(rows, min_size=2, max_size=6), st.integers(0, 2**32))
def test_a_row_draws_the_same_alone_as_among_others(drawn: list[Row], seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(len(drawn), 3000)
    together = ops.sample(logits, *parameters(drawn))
    alone = [ops.sample(logits[i : i + 1], *parameters([row])) for i, row in enumerate(drawn)]
    assert torch.equal(together, torch.cat(alone))


@settings(max_examples=60)
@given(st.lists(rows, min_size=1, max_size=4), st.integers(200, 6000), st.floats(0.001, 6), st.integers(0, 2**32))
def test_large_vocabularies_are_drawn_from_as_the_reference_does(
    drawn: list[Row], vocab_size: int, spread: float, seed: int
) -> None:
    """Flat and peaked distributions, whose cuts lie among few or thousands of tokens."""
    torch.manual_seed(seed)
    logits = spread * torch.randn(len(drawn), vocab_size, dtype=torch.float64)
    assert torch.equal(ops.sample(logits, *parameters(drawn)), reference.sample(logits, *parameters(drawn)))


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("top_k", [3, 400])
def test_equals_at_the_cut_all_stay_however_many(top_k: int, top_p: float) -> None:
    logits = torch.full((64, 1000), -1.0, dtype=torch.float64)
    logits[:, 500:] = 1.0
    drawn = ops.sample(logits, *parameters([(1.0, top_k, top_p, 0.0, i / 64) for i in range(64)]))
    assert torch.equal(drawn, torch.tensor([500 + int(500 * i / 64) for i in range(64)]))


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32))
def test_the_largest_logit_is_the_references(num_rows: int, vocab_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(num_rows, vocab_size).mul(2).round()
    assert torch.equal(ops.greedy(logits), reference.greedy(logits))
    assert torch.equal(ops.greedy(logits.bfloat16()), reference.greedy(logits))


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [5.0, -1.0, 5.0]])
    assert ops.sample(logits, *parameters([(0.0, 0, 1.0, 0.0, 0.9), (0.0, 0, 1.0, 0.0, 0.9)])).tolist() == [1, 0]


@pytest.mark.parametrize("path", [plain, plain_sampling, reference])
def test_a_row_without_a_finite_largest_logit_gives_no_token(path: ModuleType) -> None:
    logits = torch.randn(5, 1000)
    logits[1] = float("-inf")
    logits[2, 7] = float("nan")
    logits[3, 8] = float("inf")
    assert (path.greedy(logits) < 0).tolist() == [False, True, True, True, False]
    for temperature, top_k in ((0.0, 0), (1.0, 0), (1.0, 5)):
        drawn = path.sample(logits, *parameters([(temperature, top_k, 0.9, 0.0, 0.5)] * 5))
        assert (drawn < 0).tolist() == [False, True, True, True, False]


def test_the_tightest_cuts_are_greedy() -> None:
    logits = torch.randn(50, 200, dtype=torch.float64)
    uniform = torch.rand(50).tolist()
    for top_k, top_p, min_p in ((1, 1.0, 0.0), (0, 1e-9, 0.0), (0, 1.0, 1.0)):
        drawn = ops.sample(logits, *parameters([(1.5, top_k, top_p, min_p, number) for number in uniform]))
        assert torch.equal(drawn, logits.argmax(-1))


# The native path, which takes float32


def nearly(drawn: list[Row], logits: torch.Tensor, tokens: torch.Tensor) -> bool:
    """Whether each token is what the reference draws in float64, there or with numbers that differ by float32's errors
    of a sum: where a cut or a draw falls between two tokens, rounding decides."""
    nudges = [(share, number) for share in (0.0, -1e-5, 1e-5) for number in (0.0, -1e-5, 1e-5)]
    open_rows = torch.ones(len(drawn), dtype=torch.bool)
    for share, number in nudges:
        moved = [
            (
                temperature,
                top_k,
                top_p if top_p == 1 else min(1 - 1e-9, max(0.0, top_p + share)),
                min_p if min_p in (0, 1) else min(1.0, min_p * (1 + share)),
                min(1 - 1e-12, max(0.0, uniform + number)),
            )
            for temperature, top_k, top_p, min_p, uniform in drawn
        ]
        open_rows &= reference.sample(logits.double(), *parameters(moved)) != tokens
    return not bool(open_rows.any())


@pytest.fixture
def needs_native() -> None:
    if why := native.unavailable():
        pytest.skip(f"no native kernels here: {why}")


native_rows = st.tuples(
    st.one_of(st.just(0.0), st.floats(0.05, 5), st.sampled_from([1e-4, 1e-30, 100.0])),
    st.one_of(st.just(0), st.integers(1, 60), st.integers(1, 10_000)),
    st.one_of(st.just(1.0), st.floats(0.01, 0.99), st.sampled_from([0.0, 1e-9, 1 - 1e-7])),
    st.one_of(st.just(0.0), st.floats(0.001, 1), st.just(1.0)),
    # Further out, in float32, are only tokens whose weight is zero.
    st.floats(1e-6, 1 - 1e-6),
)


@pytest.mark.slow
@pytest.mark.usefixtures("needs_native")
@settings(max_examples=250)
@given(
    st.lists(native_rows, min_size=1, max_size=5),
    st.one_of(st.integers(1, 70), st.integers(1000, 5000)),
    st.sampled_from([1e-6, 0.5, 3.0, 30.0]),
    st.sampled_from(["", "ties", "masked", "ties masked", "one"]),
    st.integers(0, 2**32),
)
def test_native_draws_are_those_of_the_reference(
    drawn: list[Row], vocab_size: int, spread: float, kind: str, seed: int
) -> None:
    """Flat and peaked, with equals, with most tokens forbidden or all but one, and the tightest and loosest cuts."""
    torch.manual_seed(seed)
    logits = spread * torch.randn(len(drawn), vocab_size)
    if "ties" in kind:
        logits = logits.round()
    if "masked" in kind:
        logits[:, torch.randperm(vocab_size)[: vocab_size * 9 // 10]] = float("-inf")
    if kind == "one":
        logits[:, torch.randperm(vocab_size)[1:]] = float("-inf")
    tokens = native_sampling.sample(logits, *parameters(drawn))
    assert nearly(drawn, logits, tokens)
    assert logits.gather(1, tokens[:, None]).isfinite().all()


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("top_k", [3, 400])
def test_native_equals_at_the_cut_all_stay_however_many(top_k: int, top_p: float) -> None:
    logits = torch.full((64, 1000), -30.0)
    logits[:, 500:] = 1.0
    drawn = native_sampling.sample(logits, *parameters([(1.0, top_k, top_p, 0.0, i / 64) for i in range(64)]))
    assert torch.equal(drawn, torch.tensor([500 + int(500 * i / 64) for i in range(64)]))


@pytest.mark.usefixtures("needs_native")
@pytest.mark.parametrize("vocab_size", [1, 17, 3000])
def test_the_first_and_the_last_number_draw_the_first_and_the_last_token_that_stays(vocab_size: int) -> None:
    torch.manual_seed(4)
    logits = torch.randn(1, vocab_size)
    for top_k in (0, 9):
        kept = (logits[0] >= logits[0].topk(min(top_k or vocab_size, vocab_size)).values[-1]).nonzero().flatten()
        drawn = [
            int(native_sampling.sample(logits, *parameters([(1.0, top_k, 1.0, 0.0, number)])))
            for number in (0.0, 1 - 2.0**-53)
        ]
        assert drawn == [int(kept[0]), int(kept[-1])]


@pytest.mark.usefixtures("needs_native")
def test_native_rows_are_drawn_the_same_on_any_number_of_threads_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    logits = 2 * torch.randn(40, 5000)
    wanted: list[Row] = [(0.9, i % 3 * 20, 1 - i % 2 * 0.1, i % 5 * 0.01, i / 40) for i in range(40)]
    monkeypatch.setattr(native_sampling._local, "engine", NativeEngine(3))
    together = native_sampling.sample(logits, *parameters(wanted))
    monkeypatch.setattr(native_sampling._local, "engine", NativeEngine(1))
    alone = [native_sampling.sample(logits[i : i + 1], *parameters(wanted[i : i + 1])) for i in range(40)]
    assert torch.equal(together, torch.cat(alone))
    with pytest.raises(ValueError, match="as many of each parameter"):
        native_sampling.sample(logits, *parameters(wanted[:39]))


@pytest.mark.usefixtures("needs_native")
@settings(max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 40), st.booleans(), st.integers(0, 2**32))
def test_native_logprobs_are_those_of_the_reference(vocab_size: int, num_top: int, ties: bool, seed: int) -> None:
    torch.manual_seed(seed)
    logits = 4 * torch.randn(3, vocab_size)
    logits = logits.round() if ties else logits
    logits[1, vocab_size // 2 :] = float("-inf") if vocab_size > 1 else 0.0
    tokens = torch.randint(vocab_size, (3,))
    own, ids, top = native_sampling.token_logprobs(logits, tokens, num_top)
    expected = reference.token_logprobs(logits.double(), tokens, num_top)
    torch.testing.assert_close(own.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(top.double(), expected[2], rtol=1e-5, atol=1e-5)
    assert torch.equal(ids, expected[1])


def test_float32_rows_are_drawn_natively_where_that_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(2, 50)
    assert native_sampling.takes(logits) == (not native.unavailable())
    assert not native_sampling.takes(logits.double())
    assert not native_sampling.takes(logits.bfloat16())
    monkeypatch.setattr(native_sampling, "available", lambda: False)
    assert not native_sampling.takes(logits)
    assert torch.equal(ops.greedy(logits), plain_sampling.greedy(logits))


CUTS = [(1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.5, 0, 1.0, 0.2), (1.2, 9, 0.9, 0.1)]


def exact(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> torch.Tensor:
    """Probabilities [vocab] after the cuts, for logits without equals."""
    probabilities = (logits / temperature).softmax(0)
    if top_k:
        probabilities = probabilities.where(probabilities >= probabilities.topk(top_k).values[-1], 0)
    if top_p < 1:
        probabilities /= probabilities.sum()
        ordered, index = probabilities.sort(descending=True)
        probabilities[index[ordered.cumsum(0) - ordered >= top_p]] = 0
    probabilities[probabilities < min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("cuts", CUTS)
def test_frequencies_are_those_of_the_distribution(cuts: tuple[float, int, float, float]) -> None:
    """Stratified numbers: each token comes up as often as its probability says, to within one draw."""
    torch.manual_seed(1)
    num_draws = 20_000
    logits = torch.randn(12, dtype=torch.float64)
    numbers = ((torch.arange(num_draws) + 0.5) / num_draws).tolist()
    drawn = ops.sample(logits.expand(num_draws, -1), *parameters([(*cuts, number) for number in numbers]))
    counts = torch.bincount(drawn, minlength=12)
    assert torch.allclose(counts.double(), exact(logits, *cuts) * num_draws, atol=1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cuts", CUTS)
def test_random_draws_pass_a_chi_square(cuts: tuple[float, int, float, float], dtype: torch.dtype) -> None:
    """In float64 on torch, in float32 natively."""
    torch.manual_seed(2)
    num_draws = 20_000
    logits = 2 * torch.randn(40, dtype=torch.float64)
    expected = exact(logits, *cuts) * num_draws
    numbers = torch.rand(num_draws, dtype=torch.float64).tolist()
    rows = logits.to(dtype).expand(num_draws, -1)
    drawn = ops.sample(rows, *parameters([(*cuts, number) for number in numbers]))
    counts = torch.bincount(drawn, minlength=40)
    assert counts[expected == 0].sum() == 0
    rare = (expected > 0) & (expected < 5)  # together in one cell: each alone is too rare for the statistic
    cells = [(counts[i], expected[i]) for i in (expected >= 5).nonzero().flatten()]
    if rare.any():
        cells.append((counts[rare].sum(), expected[rare].sum()))
    chi_square = float(sum((count - goal) ** 2 / goal for count, goal in cells))
    degrees = len(cells) - 1
    # What 99.9% of true samples stay below (Wilson and Hilferty).
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3


@settings(max_examples=40)
@given(st.integers(1, 100), st.integers(1, 4), st.integers(0, 2**32))
def test_masked_tokens_are_those_whose_bit_is_not_set(vocab_size: int, num_masked: int, seed: int) -> None:
    torch.manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (num_masked, -(-vocab_size // 32)), dtype=torch.int32)
    chosen = torch.randperm(num_masked + 2)[:num_masked]
    logits = torch.randn(num_masked + 2, vocab_size, dtype=torch.float64)
    actual, expected = logits.clone(), logits.clone()
    ops.mask_tokens(actual, chosen, words)
    reference.mask_tokens(expected, chosen, words)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("path", [plain, reference])
def test_a_mask_that_is_shorter_than_the_vocabulary_leaves_the_rest(path: ModuleType) -> None:
    logits = torch.zeros(2, 40)
    path.mask_tokens(logits, torch.tensor([1]), torch.tensor([[0b110]], dtype=torch.int32))
    assert logits[0].isfinite().all()
    assert logits[1].isfinite().nonzero().flatten().tolist() == [1, 2, *range(32, 40)]


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 2**32))
def test_penalties_change_the_named_places(vocab_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = 3 * torch.randn(3, vocab_size, dtype=torch.float64)
    places = torch.randperm(3 * vocab_size)[: vocab_size + 1]
    arguments = (
        places // vocab_size,
        places % vocab_size,
        torch.rand(len(places), dtype=torch.float64) + 0.5,
        torch.randn(len(places), dtype=torch.float64),
    )
    actual, expected = logits.clone(), logits.clone()
    ops.penalize(actual, *arguments)
    reference.penalize(expected, *arguments)
    torch.testing.assert_close(actual, expected)
    untouched = torch.ones(3 * vocab_size, dtype=torch.bool)
    untouched[places] = False
    assert torch.equal(actual.flatten()[untouched], logits.flatten()[untouched])


@pytest.mark.parametrize("path", [plain, reference])
def test_a_penalty_makes_positive_and_negative_logits_smaller(path: ModuleType) -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, float("-inf")]])
    every = torch.arange(4)
    path.penalize(logits, torch.zeros(4, dtype=torch.int64), every, torch.full((4,), 2.0), torch.full((4,), -0.5))
    assert logits.tolist() == [[0.5, -4.5, -0.5, float("-inf")]]


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 6), st.integers(0, 2**32))
def test_logprobs_are_those_of_the_reference(vocab_size: int, num_top: int, seed: int) -> None:
    torch.manual_seed(seed)
    logits = 4 * torch.randn(5, vocab_size, dtype=torch.float64)
    tokens = torch.randint(vocab_size, (5,))
    actual = ops.token_logprobs(logits, tokens, num_top)
    expected = reference.token_logprobs(logits, tokens, num_top)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_first_of_equals_is_reported_as_the_likeliest() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, [70, 4000, 900]] = 3.0
    for num_top in (1, 3):
        assert ops.token_logprobs(logits, torch.tensor([0]), num_top)[1][0].tolist() == [70, 900, 4000][:num_top]
