"""Packed attention and its gradients against the reference in float64.

Tolerance: sums are in float32; weights of the softmax and gradients by scores are rounded to the type of q, and a
gradient of a key is a sum over the queries that see it. So some units in the last place of that type, of the largest
number of each tensor. In float32 on a card products are three of tf32, with some 2^-20 of each term.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from callboard.kernels import ops_attention, reference_attention
from callboard.kernels.gpu.varlen_attention import varlen_attention

LENGTHS = [5, 32, 0, 1, 35, 0]


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


def bounds(lengths: list[int], device: torch.device, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(dtype)


def inputs(
    num_tokens: int, heads: tuple[int, int], head_dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v cut out of one product, whose other numbers are NaN."""
    num_heads, num_kv_heads = heads
    fused = torch.full((num_tokens, num_heads + 2 * num_kv_heads + 1, head_dim + 16), torch.nan, device=device)
    fused = fused.to(dtype)
    fused[:, :-1, :head_dim] = torch.randn(num_tokens, num_heads + 2 * num_kv_heads, head_dim, device=device).to(dtype)
    q, k, v = fused[:, :-1, :head_dim].split([num_heads, num_kv_heads, num_kv_heads], 1)
    return q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_()


def check(
    lengths: list[int],
    heads: tuple[int, int],
    head_dim: int,
    device: torch.device,
    dtype: torch.dtype,
    causal: bool = True,
    window: int = 0,
) -> None:
    q, k, v = inputs(sum(lengths), heads, head_dim, device, dtype)
    scale, cu_seqlens = 1.5 * head_dim**-0.5, bounds(lengths, device)
    out = varlen_attention(q, k, v, cu_seqlens, scale, causal, window)
    grad = torch.randn(out.shape, device=device).to(dtype)
    actual = [out, *torch.autograd.grad(out, (q, k, v), grad)]
    wide = (q.detach().double(), k.detach().double(), v.detach().double())
    for x in wide:
        x.requires_grad_()
    expected_out = reference_attention.varlen_attention(*wide, cu_seqlens, scale, causal, window)
    gradients = torch.autograd.grad(expected_out, wide, grad.double(), allow_unused=True, materialize_grads=True)
    expected = [expected_out, *gradients]
    for here, there in zip(actual, expected, strict=True):
        assert here.is_contiguous()
        assert here.dtype == dtype
        tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
        largest = float(there.detach().abs().amax()) if there.numel() else 0.0
        torch.testing.assert_close(here.double(), there, rtol=0, atol=tolerance * max(1.0, largest))


@pytest.mark.parametrize(
    ("lengths", "heads", "causal"),
    [
        (LENGTHS, (4, 2), True),
        (LENGTHS, (2, 1), False),
        ([1], (1, 1), True),
        ([70, 34], (3, 1), True),
        ([70, 34], (1, 1), False),
        ([130], (1, 1), True),
        ([3] * 5, (9, 3), True),
        ([4, 1], (71, 1), True),
        ([0], (2, 1), True),
        ([], (2, 1), True),
    ],
    ids=str,
)
def test_sequences_do_not_see_each_other(
    lengths: list[int], heads: tuple[int, int], causal: bool, device: torch.device, dtype: torch.dtype
) -> None:
    check(lengths, heads, 64, device, dtype, causal)


@pytest.mark.parametrize("window", [1, 7, 32, 50, 1000])
def test_a_window(window: int, device: torch.device, dtype: torch.dtype) -> None:
    check([75, 20], (2, 1), 32, device, dtype, window=window)


@pytest.mark.parametrize("head_dim", [16, 80, 96, 128, 256])
def test_heads_of_any_size(head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
    check([37, 9], (2, 1), head_dim, device, dtype)


def test_gradients_are_the_same_bits_in_every_run(device: torch.device, dtype: torch.dtype) -> None:
    q, k, v = inputs(40, (4, 2), 32, device, dtype)
    grad = torch.randn(40, 4, 32, device=device).to(dtype)
    cu_seqlens = bounds([40], device, torch.int64)
    runs = [torch.autograd.grad(varlen_attention(q, k, v, cu_seqlens, 0.1), (q, k, v), grad) for _ in range(2)]
    for run in runs[1:]:
        for here, first in zip(run, runs[0], strict=True):
            assert torch.equal(here, first)


def test_a_gradient_that_is_spread_out(device: torch.device, dtype: torch.dtype) -> None:
    """As `sum` and transposed views give it: strides of zero, or a last dimension that is not contiguous."""
    q, k, v = inputs(20, (2, 1), 64, device, dtype)
    cu_seqlens = bounds([20], device)
    for grad in (
        torch.ones((), device=device, dtype=dtype).expand(20, 2, 64),
        torch.ones(64, 2, 20, dtype=dtype, device=device).transpose(0, 2),
    ):
        out = varlen_attention(q, k, v, cu_seqlens, 0.1)
        here = torch.autograd.grad(out, (q, k, v), grad)
        there = torch.autograd.grad(varlen_attention(q, k, v, cu_seqlens, 0.1), (q, k, v), torch.ones_like(out))
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    q, k = torch.ones(3, 4, 64, device=device), torch.ones(3, 2, 64, device=device)
    cu_seqlens = bounds([3], device)
    with pytest.raises(ValueError, match="q is float64"):
        varlen_attention(q.double(), k, k, cu_seqlens, 1.0)
    with pytest.raises(ValueError, match="v is float16"):
        varlen_attention(q, k, k.half(), cu_seqlens, 1.0)
    with pytest.raises(ValueError, match="cu_seqlens is float32"):
        varlen_attention(q, k, k, cu_seqlens.float(), 1.0)
    wide = torch.ones(3, 1, 512, device=device)
    with pytest.raises(ValueError, match="heads of 512"):
        varlen_attention(wide, wide, wide, cu_seqlens, 1.0)
    with pytest.raises(ValueError, match="q has 65 heads of 128 to each of k; at most 64"):
        varlen_attention(torch.ones(3, 65, 128, device=device), wide[..., :128], wide[..., :128], cu_seqlens, 1.0)
    with pytest.raises(ValueError, match="does not go with k"):
        ops_attention.varlen_attention(q[:, :3], k, k, cu_seqlens, 1.0)
    with pytest.raises(ValueError, match="needs causal"):
        ops_attention.varlen_attention(q, k, k, cu_seqlens, 1.0, causal=False, window=3)
