"""Gate products against the reference in float64. Tolerance: computed in float32 and rounded once, so a unit in the
last place, and in float32 itself some more for the exponential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from callboard.kernels import reference
from callboard.kernels.gpu import gate


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


Product = Callable[[torch.Tensor], torch.Tensor]
PRODUCTS = [(gate.silu_mul, reference.silu_mul), (gate.gelu_mul, reference.gelu_mul)]


@pytest.mark.parametrize("products", PRODUCTS, ids=["silu", "gelu"])
@pytest.mark.parametrize(("num_tokens", "intermediate"), [(1, 1), (3, 37), (5, 512), (2, 2049), (0, 8), (3, 0)])
def test_gate_products(
    products: tuple[Product, Product], num_tokens: int, intermediate: int, device: torch.device, dtype: torch.dtype
) -> None:
    product, expected = products
    x = 4 * torch.randn(num_tokens, 2 * intermediate, device=device).to(dtype)
    unit = torch.finfo(dtype).eps
    # gelu of a large negative value is a difference: what float32 leaves of it is an error of its size before.
    torch.testing.assert_close(product(x).double(), expected(x.double()), rtol=8 * unit, atol=1e-5)


@pytest.mark.parametrize("products", PRODUCTS, ids=["silu", "gelu"])
def test_extreme_values_do_not_overflow(products: tuple[Product, Product], device: torch.device) -> None:
    x = torch.tensor([[-1e4, -200.0, 0.0, 200.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]], device=device)
    assert products[0](x).tolist() == [[0.0, 0.0, 0.0, 200.0, 1e4]]


def test_rows_of_a_wider_matrix(device: torch.device, dtype: torch.dtype) -> None:
    wide = torch.full((4, 100), torch.nan, device=device, dtype=dtype)
    wide[:, :66] = torch.randn(4, 66, device=device).to(dtype)
    x = wide[:, :66]
    torch.testing.assert_close(gate.silu_mul(x).double(), reference.silu_mul(x.double()), rtol=2e-2, atol=2e-2)


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    with pytest.raises(ValueError, match="even number"):
        gate.silu_mul(torch.ones(2, 5, device=device))
    with pytest.raises(ValueError, match="gate_up has the shape"):
        gate.gelu_mul(torch.ones(4, device=device))
