"""Products by oneDNN are those of float64 but for rounding, and of torch where oneDNN takes none."""

from __future__ import annotations

import pytest
import torch

from callboard.kernels import wide_products


@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (2, 3, 33), (0, 8)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_that_of_float64(shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight = torch.randn(shape), torch.randn(19, shape[-1])
    bias = torch.randn(19) if with_bias else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    with torch.inference_mode():
        made = wide_products.linear(x, weight, bias)
    torch.testing.assert_close(made.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_weight_that_does_not_lie_in_rows_is_read_as_it_is() -> None:
    x, weight = torch.randn(4, 48)[:, ::2], torch.randn(24, 10).T
    with torch.no_grad():
        made = wide_products.linear(x, weight)
    torch.testing.assert_close(made, x @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_go_through_torch(dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 8, dtype=dtype), torch.randn(5, 8, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(wide_products.linear(x, weight), torch.nn.functional.linear(x, weight))


def test_where_a_gradient_is_wanted_there_is_one() -> None:
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8)
    wide_products.linear(x, weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 8))


def test_a_second_moment_is_the_sum_of_outer_products() -> None:
    x, y = torch.randn(50, 6), torch.randn(50, 4)
    with torch.no_grad():
        torch.testing.assert_close(wide_products.second_moment(x, y), torch.einsum("ri,rj->ij", x, y))
        own = wide_products.second_moment(x)
    torch.testing.assert_close(own, torch.einsum("ri,rj->ij", x, x))
    torch.testing.assert_close(own, own.T)
