"""Norms against the reference in float64. Tolerances: the result is rounded twice to its type (before and after the
weight), so two units in the last place, and a sum of squares in float32 adds less than that."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from callboard.kernels import reference
from callboard.kernels.gpu import norms


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    unit = torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=3 * unit, atol=3 * unit)


SHAPES = [(1, 1), (3, 7), (33, 64), (5, 576), (2, 4097), (1, 8192), (3, 20011), (0, 64)]


@pytest.mark.parametrize(("num_rows", "hidden"), SHAPES)
def test_rows_are_scaled_to_root_mean_square_one(
    num_rows: int, hidden: int, device: torch.device, dtype: torch.dtype
) -> None:
    x = 3 * torch.randn(num_rows, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, device=device).to(dtype)
    assert_close(norms.rms_norm(x, weight, 1e-5), reference.rms_norm(x.double(), weight.double(), 1e-5))


@pytest.mark.parametrize(("num_rows", "hidden"), SHAPES)
def test_the_residual_becomes_the_sum(num_rows: int, hidden: int, device: torch.device, dtype: torch.dtype) -> None:
    x, residual = torch.randn(2, num_rows, hidden, device=device).to(dtype)
    weight = torch.randn(hidden, device=device).to(dtype)
    total = x + residual
    normed, added = norms.add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(added, total)
    assert added.data_ptr() == residual.data_ptr()
    # The norm is of the sum as it is kept.
    assert_close(normed, reference.rms_norm(total.double(), weight.double(), 1e-6))


def test_heads_of_a_fused_product_are_normed_where_they_lie(device: torch.device, dtype: torch.dtype) -> None:
    fused = torch.randn(5, 9, 24, device=device).to(dtype)
    weight = torch.randn(24, device=device).to(dtype)
    q = fused[:, 2:6]
    normed = norms.rms_norm(q, weight, 1e-5)
    assert normed.is_contiguous()
    assert_close(normed, reference.rms_norm(q.double(), weight.double(), 1e-5))
    assert_close(
        norms.rms_norm(fused[0, 0], weight, 1e-5), reference.rms_norm(fused[0, 0].double(), weight.double(), 1e-5)
    )
    four = torch.randn(2, 3, 4, 24, device=device).to(dtype)
    assert_close(norms.rms_norm(four, weight, 1e-5), reference.rms_norm(four.double(), weight.double(), 1e-5))


def test_nothing_beside_the_rows_is_read_or_written(device: torch.device, dtype: torch.dtype) -> None:
    """Rows lie in a wider matrix of NaN."""
    wide = torch.full((4, 40), torch.nan, device=device, dtype=dtype)
    wide[:, :33] = torch.randn(4, 33, device=device).to(dtype)
    x, weight = torch.randn(4, 33, device=device).to(dtype), torch.ones(33, device=device, dtype=dtype)
    normed, _ = norms.add_rms_norm(x, wide[:, :33], weight, 1e-5)
    assert normed.isfinite().all()
    assert wide[:, 33:].isnan().all()


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    x, weight = torch.ones(2, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(ValueError, match="x is float64"):
        norms.rms_norm(x.double(), weight, 1e-5)
    with pytest.raises(ValueError, match="weight is float16"):
        norms.rms_norm(x, weight.half(), 1e-5)
    with pytest.raises(ValueError, match="weight has 7 values"):
        norms.rms_norm(x, weight[:7], 1e-5)
    with pytest.raises(ValueError, match="residual has the shape"):
        norms.add_rms_norm(x, x[:1], weight, 1e-5)
    with pytest.raises(ValueError, match="x has the strides"):
        norms.rms_norm(torch.ones(8, 2, device=device).T, weight, 1e-5)
