"""Log-probabilities against the reference in float64. Tolerance: sums of up to ten thousand terms in float32, whose
logarithm is of the size of ten."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from callboard.kernels import reference
from callboard.kernels.gpu import logprobs


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


TOLERANCE = 1e-5


@pytest.mark.parametrize("num_top", [0, 1, 5])
@pytest.mark.parametrize(("num_rows", "vocab"), [(1, 1), (3, 50), (2, 2048), (1, 10_007), (40, 300), (0, 8)])
def test_log_probabilities(num_rows: int, vocab: int, num_top: int, device: torch.device, dtype: torch.dtype) -> None:
    logits = (4 * torch.randn(num_rows, vocab, device=device)).to(dtype)
    tokens = torch.randint(0, vocab, (num_rows,), device=device)
    own, ids, top = logprobs.token_logprobs(logits, tokens, num_top)
    expected_own, _, expected_top = reference.token_logprobs(logits.double(), tokens, num_top)
    torch.testing.assert_close(own.double(), expected_own, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(top.double(), expected_top, rtol=TOLERANCE, atol=TOLERANCE)
    named = logits.double().log_softmax(-1).gather(1, ids)
    torch.testing.assert_close(named, expected_top, rtol=TOLERANCE, atol=TOLERANCE)
    assert all(len(set(row)) == len(row) for row in ids.tolist())


def test_forbidden_tokens_and_equals(device: torch.device) -> None:
    logits = torch.full((2, 5000), float("-inf"), device=device)
    logits[0, [7, 4000, 4999]] = torch.tensor([1.0, 2.0, 2.0], device=device)
    logits[1, 3] = -50.0
    tokens = torch.tensor([4999, 3], device=device)
    own, ids, top = logprobs.token_logprobs(logits, tokens, 3)
    expected, _, expected_top = reference.token_logprobs(logits.double(), tokens, 3)
    torch.testing.assert_close(own.double(), expected, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(top.double(), expected_top, rtol=TOLERANCE, atol=TOLERANCE)
    assert ids[0].tolist() == [4000, 4999, 7]
    assert logprobs.token_logprobs(logits, tokens, 1)[1].tolist() == [[4000], [3]]


def test_a_row_with_no_number_in_it_has_no_log_probability(device: torch.device) -> None:
    logits = torch.zeros(2, 3000, device=device)
    logits[1, 2999] = float("nan")
    own = logprobs.token_logprobs(logits, torch.tensor([0, 0], device=device), 0)[0]
    assert own.isnan().tolist() == [False, True]


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    logits, tokens = torch.zeros(2, 5, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="tokens is int32"):
        logprobs.token_logprobs(logits, tokens.int(), 0)
    with pytest.raises(ValueError, match="tokens has 1 values"):
        logprobs.token_logprobs(logits, tokens[:1], 0)
    with pytest.raises(ValueError, match="num_top is -1"):
        logprobs.token_logprobs(logits, tokens, -1)
