"""Rotary embedding against the reference in float64. Tolerance: products are summed in float32 and rounded once, so a
unit in the last place of the larger of the pair."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from callboard.kernels import reference
from callboard.kernels.gpu import rotary


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


def rotation(num_tokens: int, num_pairs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    angles = 10 * torch.randn(num_tokens, num_pairs, device=device)
    return angles.cos(), angles.sin()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    unit = torch.finfo(actual.dtype).eps
    assert actual.is_contiguous()
    torch.testing.assert_close(actual.double(), expected, rtol=unit, atol=8 * unit)  # values reach some eight


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "heads", "head_dim", "num_pairs"),
    [
        (1, (1, 1), 2, 1),
        (5, (6, 2), 64, 32),
        (3, (9, 3), 80, 40),  # no power of two
        (4, (3, 1), 80, 16),  # the first 32 of 80 dimensions turn
        (2, (40, 8), 128, 64),
        (2, (2, 2), 256, 12),
        (0, (4, 4), 64, 32),
    ],
)
def test_each_pair_turns_by_its_angle(
    num_tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    num_pairs: int,
    interleaved: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    q, k = (torch.randn(num_tokens, count, head_dim, device=device).to(dtype) for count in heads)
    cos, sin = (table.to(dtype) for table in rotation(num_tokens, num_pairs, device))
    turned = rotary.rotary(q, k, cos, sin, interleaved)
    expected = reference.rotary(q.double(), k.double(), cos.double(), sin.double(), interleaved)
    for actual, wanted in zip(turned, expected, strict=True):
        assert_close(actual, wanted)


def test_heads_of_a_fused_product_and_angles_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    fused = torch.full((7, 11, 16), torch.nan, device=device, dtype=dtype)
    fused[:, :8] = torch.randn(7, 8, 16, device=device).to(dtype)
    q, k = fused[:, :5], fused[:, 5:8]
    cos, sin = rotation(7, 8, device)
    expected = reference.rotary(q.double(), k.double(), cos.double(), sin.double())
    for actual, wanted in zip(rotary.rotary(q, k, cos, sin), expected, strict=True):
        assert_close(actual, wanted)


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    q, k = torch.ones(3, 4, 8, device=device), torch.ones(3, 2, 8, device=device)
    cos = torch.ones(3, 4, device=device)
    with pytest.raises(ValueError, match="k has the shape"):
        rotary.rotary(q, k[:2], cos, cos)
    with pytest.raises(ValueError, match="sin has the shape"):
        rotary.rotary(q, k, cos, cos[:, :3])
    with pytest.raises(ValueError, match="cos has the shape"):
        rotary.rotary(q, k, torch.ones(3, 5, device=device), cos)
    with pytest.raises(ValueError, match="cos is float16"):
        rotary.rotary(q, k, cos.half(), cos)
