"""Greedy and drawn tokens, masks and penalties against the reference in float64.

A draw is decided by sums in float32 at a cut and at the number drawn: where those fall between two tokens by less than
its errors, either is right. So a token must be what the reference draws with shares and numbers moved by 1e-5 at most,
and with one token more where that weighs as much as the last of the `top_k` to a millionth.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from callboard.kernels import reference
from callboard.kernels.gpu import logits as changes
from callboard.kernels.gpu import peaks, sampling


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


Row = tuple[float, int, float, float, float]


def parameters(rows: list[Row], device: torch.device) -> tuple[torch.Tensor, ...]:
    """temperature, top_k, top_p, min_p, uniform."""
    temperature, top_k, top_p, min_p, uniform = zip(*rows, strict=True)
    floats = (
        torch.tensor(column, dtype=torch.float64, device=device) for column in (temperature, top_p, min_p, uniform)
    )
    first, *rest = floats
    return first, torch.tensor(top_k, device=device), *rest


def is_near(rows: list[Row], logits: torch.Tensor, tokens: torch.Tensor) -> bool:
    is_open = torch.ones(len(rows), dtype=torch.bool, device=logits.device)
    equals = [has_equal_at_cut(row, logits[i]) for i, row in enumerate(rows)]
    for share, number, more in itertools.product((0.0, -1e-5, 1e-5), (0.0, -1e-5, 1e-5), (0, 1)):
        moved = [
            (
                temperature,
                top_k + (more if has_equal else 0),
                top_p if top_p == 1 else min(1 - 1e-9, max(0.0, top_p + share)),
                min_p if min_p in (0, 1) else min_p * (1 + share),
                min(1 - 1e-12, max(0.0, uniform + number)),
            )
            for (temperature, top_k, top_p, min_p, uniform), has_equal in zip(rows, equals, strict=True)
        ]
        is_open &= reference.sample(logits.double(), *parameters(moved, logits.device)) != tokens
    return not bool(is_open.any())


def has_equal_at_cut(row: Row, logits: torch.Tensor) -> bool:
    temperature, top_k, *_ = row
    if temperature == 0 or not 0 < top_k < len(logits):
        return False
    last, following = logits.double().sort(descending=True).values[top_k - 1 : top_k + 1].tolist()
    return (last - following) / temperature < 1e-6


def some_rows(count: int, max_k: int) -> list[Row]:
    """Every kind of cut, alone and with others; numbers drawn anew."""
    rows: list[Row] = []
    for i in range(count):
        numbers = torch.rand(5).tolist()
        rows.append(
            (
                0.0 if i % 8 == 7 else (0.05, 1.0, 3 * numbers[0] + 0.1)[i % 3],
                1 + int(numbers[1] * max_k) if i % 2 else 0,
                numbers[2] if i % 3 == 0 else 1.0,
                numbers[3] if i % 5 == 1 else 0.0,
                numbers[4],
            )
        )
    return rows


@pytest.mark.parametrize("kind", ["spread", "flat", "ties", "masked"])
@pytest.mark.parametrize(("num_rows", "vocab"), [(12, 1), (12, 50), (6, 1024), (4, 5000)])
def test_a_token_is_what_the_reference_draws(num_rows: int, vocab: int, kind: str, device: torch.device) -> None:
    logits = (0.01 if kind == "flat" else 3) * torch.randn(num_rows, vocab, device=device)
    if kind == "ties":
        logits = logits.round()
    if kind == "masked":
        logits[:, torch.randperm(vocab, device=device)[: vocab // 2]] = float("-inf")
    rows = some_rows(num_rows, max_k=vocab + 20)
    tokens = sampling.sample(logits, *parameters(rows, device))
    assert is_near(rows, logits, tokens), (rows, tokens)
    assert logits.gather(1, tokens[:, None]).isfinite().all()


def test_every_type_of_logits(device: torch.device, dtype: torch.dtype) -> None:
    logits = torch.randn(6, 300, device=device).to(dtype)
    rows = some_rows(6, max_k=40)
    assert is_near(rows, logits, sampling.sample(logits, *parameters(rows, device)))


@pytest.mark.parametrize("top_p", [1.0, 0.5])
@pytest.mark.parametrize("top_k", [3, 400])
def test_equals_at_the_cut_all_stay_however_many(top_k: int, top_p: float, device: torch.device) -> None:
    logits = torch.full((8, 3000), -1.0, device=device)
    logits[:, 2500:] = 1.0
    drawn = sampling.sample(logits, *parameters([(1.0, top_k, top_p, 0.0, i / 8 + 1e-6) for i in range(8)], device))
    assert drawn.tolist() == [2500 + int(500 * i / 8) for i in range(8)]


def test_the_tightest_cuts_are_greedy(device: torch.device) -> None:
    logits = torch.randn(6, 2000, device=device)
    uniform = torch.rand(6).tolist()
    for top_k, top_p, min_p in ((1, 1.0, 0.0), (0, 0.0, 0.0), (0, 1e-9, 0.0), (0, 1.0, 1.0)):
        drawn = sampling.sample(logits, *parameters([(1.5, top_k, top_p, min_p, number) for number in uniform], device))
        assert torch.equal(drawn, logits.argmax(-1))


def test_extreme_temperatures(device: torch.device) -> None:
    logits = torch.randn(4, 100, device=device)
    cold = sampling.sample(logits, *parameters([(1e-30, 0, 1.0, 0.0, 0.999)] * 4, device))
    assert torch.equal(cold, logits.argmax(-1))
    hot = sampling.sample(logits, *parameters([(1e6, 0, 1.0, 0.0, (i + 0.5) / 4) for i in range(4)], device))
    assert hot.tolist() == [12, 37, 62, 87]


def test_a_row_without_a_finite_largest_logit_gives_no_token(device: torch.device) -> None:
    logits = torch.randn(5, 3000, device=device)
    logits[1] = float("-inf")
    logits[2, 7] = float("nan")
    logits[3, 2900] = float("inf")
    assert (peaks.greedy(logits) < 0).tolist() == [False, True, True, True, False]
    for temperature, top_k in ((0.0, 0), (1.0, 0), (1.0, 5)):
        drawn = sampling.sample(logits, *parameters([(temperature, top_k, 0.9, 0.0, 0.5)] * 5, device))
        assert (drawn < 0).tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(("num_rows", "vocab"), [(1, 1), (3, 77), (2, 2048), (2, 9001), (0, 5)])
def test_greedy_takes_the_first_of_equals(num_rows: int, vocab: int, device: torch.device, dtype: torch.dtype) -> None:
    logits = torch.randn(num_rows, vocab, device=device).round().to(dtype)
    assert torch.equal(peaks.greedy(logits), reference.greedy(logits))


def test_a_row_draws_the_same_however_rows_are_divided(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(4, 6000, device=device)
    rows = some_rows(4, max_k=100)
    together = sampling.sample(logits, *parameters(rows, device))
    monkeypatch.setattr(sampling, "ROWS_AT_ONCE", 1)
    assert torch.equal(together, sampling.sample(logits, *parameters(rows, device)))


def test_frequencies_are_the_softmaxs(device: torch.device) -> None:
    """Chi-square over seven tokens, three of which a cut takes: with 3 degrees of freedom a right sampler exceeds 21.1
    once in ten thousand runs."""
    num_draws, temperature = 20_000 if device.type == "cuda" else 200, 0.8
    row = torch.tensor([0.0, 1.0, -3.0, 0.5, 1.0, -4.0, -3.5], device=device)
    generator = torch.Generator().manual_seed(5)
    uniform = torch.rand(num_draws, generator=generator).tolist()
    logits = row.expand(num_draws, -1).contiguous()
    drawn = sampling.sample(logits, *parameters([(temperature, 4, 1.0, 0.0, number) for number in uniform], device))
    counts = drawn.bincount(minlength=7).double().cpu()
    weights = (row.double().cpu() / temperature).exp()
    weights[[2, 5, 6]] = 0
    expected = num_draws * weights / weights.sum()
    assert counts[[2, 5, 6]].sum() == 0
    kept = expected > 0
    assert float(((counts - expected)[kept] ** 2 / expected[kept]).sum()) < 21.1


@pytest.mark.parametrize(("vocab", "num_words"), [(1, 1), (70, 3), (2050, 65), (3000, 50)])
def test_masks_forbid_what_they_say(vocab: int, num_words: int, device: torch.device, dtype: torch.dtype) -> None:
    logits = torch.randn(5, vocab, device=device).to(dtype)
    rows = torch.tensor([3, 0], device=device)
    bitmask = torch.randint(-(2**31), 2**31, (2, num_words), dtype=torch.int64, device=device).to(torch.int32)
    expected = logits.clone()
    reference.mask_tokens(expected, rows, bitmask)
    changes.mask_tokens(logits, rows, bitmask)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("num_places", [0, 1, 300])
def test_penalties_change_the_named_logits(num_places: int, device: torch.device, dtype: torch.dtype) -> None:
    logits = torch.randn(4, 200, device=device).to(dtype)
    places = torch.randperm(800, device=device)[:num_places]
    repetition = (1 + torch.rand(num_places, device=device)).to(dtype)
    offset = torch.randn(num_places, device=device).to(dtype)
    expected = logits.double()
    reference.penalize(expected, places // 200, places % 200, repetition.double(), offset.double())
    changes.penalize(logits, places // 200, places % 200, repetition, offset)
    unit = torch.finfo(dtype).eps  # rounded once; a sum may cancel, so the error is of the size of its terms
    torch.testing.assert_close(logits.double(), expected, rtol=2 * unit, atol=8 * unit)


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    logits = torch.randn(2, 10, device=device)
    temperature, top_k, top_p, min_p, uniform = parameters([(1.0, 0, 1.0, 0.0, 0.5)] * 2, device)
    with pytest.raises(ValueError, match="logits is int64"):
        peaks.greedy(logits.long())
    with pytest.raises(ValueError, match="logits have no columns"):
        peaks.greedy(logits[:, :0])
    with pytest.raises(ValueError, match="top_k is float64"):
        sampling.sample(logits, temperature, temperature, top_p, min_p, uniform)
    with pytest.raises(ValueError, match="min_p has 1 values for 2 rows"):
        sampling.sample(logits, temperature, top_k, top_p, min_p[:1], uniform)
    wide = torch.zeros(1, (1 << 20) + 1, device=device).expand(2, -1)
    with pytest.raises(ValueError, match="at most 1048576"):
        sampling.sample(wide, temperature, top_k, top_p, min_p, uniform)
    index = torch.tensor([0], device=device)
    with pytest.raises(ValueError, match="bitmask has 2 rows"):
        changes.mask_tokens(logits, index, torch.ones(2, 1, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="offset is float64"):
        changes.penalize(logits, index, index, logits[0, :1], logits[0, :1].double())
