"""The chunked loss and its gradients against autograd's through the reference in float64.

Tolerances: logits of the size of some units are rounded to their type once and their gradient, at most one, once more;
so gradients are off by a few units in the last place of one, times the size of what they are multiplied with.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from callboard.kernels import cross_entropy as chunked
from callboard.kernels import reference_losses
from callboard.kernels.cross_entropy import Settings
from callboard.kernels.gpu import cross_entropy


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


OPTIONS = [(0.0, 0.0), (5.0, 0.0), (0.0, 0.1), (30.0, 0.2)]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("num_tokens", "vocab"), [(1, 2), (9, 50), (3, 4097)])
def test_losses_and_the_gradient_in_the_logits_place(
    num_tokens: int, vocab: int, options: tuple[float, float], device: torch.device, dtype: torch.dtype
) -> None:
    logits = (3 * torch.randn(num_tokens, vocab, device=device)).to(dtype)
    targets = torch.randint(0, vocab, (num_tokens,), device=device)
    targets[::4] = -100
    wide = logits.double().requires_grad_()
    # An identity as the weight makes the reference's hidden states logits.
    eye = torch.eye(vocab, dtype=torch.float64, device=device)
    expected, _ = reference_losses.linear_cross_entropy(wide, eye, targets, -100, *options)
    (gradient,) = torch.autograd.grad(expected, wide)
    settings = Settings(-100, *options)
    unchanged = logits.clone()
    losses = cross_entropy.row_losses(logits, targets, settings, False)
    assert torch.equal(logits, unchanged)
    torch.testing.assert_close(losses.sum().double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(losses, cross_entropy.row_losses(logits, targets, settings, True))
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(logits.double(), gradient, rtol=2 * unit, atol=max(unit * 1e-2, 2e-6))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_in_chunks(
    options: tuple[float, float], device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunked.CHUNK_BYTES, device.type, 4 * 70 * dtype.itemsize)  # four tokens of 70 logits
    monkeypatch.setattr(chunked, "WEIGHT_ROWS", 32)
    hidden = torch.randn(13, 24, device=device).to(dtype).requires_grad_()
    weight = torch.randn(70, 24, device=device).mul(0.3).to(dtype).requires_grad_()
    targets = torch.randint(0, 70, (13,), device=device)
    targets[[2, 3, 12]] = 7777
    loss, count = cross_entropy.linear_cross_entropy(hidden, weight, targets, 7777, *options)
    assert int(count) == 10
    (loss / count).backward()
    wide = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected, _ = reference_losses.linear_cross_entropy(wide[0], wide[1], targets, 7777, *options)
    (expected / 10).backward()
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5 + unit, atol=1e-5 + 10 * unit)
    for x, y in zip((hidden, weight), wide, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=8 * unit, atol=8 * unit)


def test_logits_that_are_minus_infinity_or_huge(device: torch.device) -> None:
    logits = torch.full((2, 5000), float("-inf"), device=device)
    logits[0, 4500], logits[0, 1] = 1.0, 1.0
    logits[1] = torch.randn(5000, device=device) * 1e4
    targets = torch.stack([torch.tensor(1, device=device), logits[1].argmax()])
    losses = cross_entropy.row_losses(logits, targets, Settings(-100, 0.0, 0.0), True)
    torch.testing.assert_close(losses[0].item(), math.log(2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits[0, [1, 4500]].tolist(), [-0.5, 0.5], rtol=1e-6, atol=1e-6)
    assert logits.isfinite().all()


def test_a_target_that_is_no_token_is_not_a_number(device: torch.device) -> None:
    losses = cross_entropy.row_losses(
        torch.zeros(3, 4, device=device), torch.tensor([0, 4, -1], device=device), Settings(-100, 0.0, 0.0), False
    )
    assert losses.isnan().tolist() == [False, True, True]


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    hidden, weight = torch.zeros(3, 4, device=device), torch.zeros(5, 4, device=device)
    targets = torch.zeros(3, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="does not go with"):
        cross_entropy.linear_cross_entropy(hidden, weight[:, :3].contiguous(), targets)
    with pytest.raises(ValueError, match="one floating type"):
        cross_entropy.linear_cross_entropy(hidden, weight.half(), targets)
    with pytest.raises(ValueError, match="targets is"):
        cross_entropy.linear_cross_entropy(hidden, weight, targets[:2])
    with pytest.raises(ValueError, match="label_smoothing 1"):
        cross_entropy.linear_cross_entropy(hidden, weight, targets, label_smoothing=1.0)
    with pytest.raises(ValueError, match="hidden is float64"):
        cross_entropy.linear_cross_entropy(hidden.double(), weight.double(), targets)
