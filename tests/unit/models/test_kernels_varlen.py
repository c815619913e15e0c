"""Attention of packed sequences: the reference against its gradients and against PyTorch, the torch path against it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels import ops_attention, reference_attention


def bounds(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def inputs(
    num_tokens: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, k, v = (torch.randn(num_tokens, count, head_dim, dtype=dtype) for count in (heads[0], heads[1], heads[1]))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize(("causal", "window"), [(True, 0), (True, 2), (False, 0)])
def test_gradients_of_the_reference(causal: bool, window: int) -> None:
    cu_seqlens = bounds([4, 0, 1, 3])

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return reference_attention.varlen_attention(q, k, v, cu_seqlens, 0.6, causal, window)

    assert torch.autograd.gradcheck(attend, inputs(8, (4, 2), 3, torch.float64))


def test_the_reference_is_plain_attention_of_each_sequence() -> None:
    q, k, v = inputs(9, (4, 2), 8, torch.float64)
    actual = reference_attention.varlen_attention(q, k, v, bounds([6, 3]), 0.3)
    for part in (slice(0, 6), slice(6, 9)):
        queries, keys, values = (
            x[part].transpose(0, 1) for x in (q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        )
        expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=0.3)
        torch.testing.assert_close(actual[part], expected.transpose(0, 1))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 20), max_size=5),
    st.sampled_from([(1, 1), (4, 2), (9, 3)]),
    st.sampled_from([(True, 0), (True, 1), (True, 5), (False, 0)]),
    st.sampled_from([torch.float64, torch.float32]),
    st.integers(0, 2**32),
)
def test_torch_path_is_the_reference_and_so_are_its_gradients(
    lengths: list[int], heads: tuple[int, int], limits: tuple[bool, int], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    tensors = inputs(sum(lengths), heads, 8, dtype)
    q, k, v = (x.detach().double().requires_grad_() for x in tensors)
    wide = q, k, v
    actual = ops_attention.varlen_attention(*tensors, bounds(lengths), 0.4, *limits)
    expected = reference_attention.varlen_attention(*wide, bounds(lengths), 0.4, *limits)
    grad = torch.randn(expected.shape, dtype=torch.float64)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
    if not lengths:
        return
    here = torch.autograd.grad(actual, tensors, grad.to(dtype), allow_unused=True, materialize_grads=True)
    there = torch.autograd.grad(expected, wide, grad, allow_unused=True, materialize_grads=True)
    for a, b in zip(here, there, strict=True):
        # Gradients of a key are sums over its queries.
        torch.testing.assert_close(a.double(), b, rtol=20 * tolerance, atol=20 * tolerance)


def test_what_does_not_go_together_is_named() -> None:
    q, k = torch.ones(3, 4, 8), torch.ones(3, 2, 8)
    with pytest.raises(ValueError, match="does not go with k"):
        ops_attention.varlen_attention(q[:, :3], k, k, bounds([3]), 1.0)
    with pytest.raises(ValueError, match="of one size"):
        ops_attention.varlen_attention(q, k, k[:2], bounds([3]), 1.0)
    for wrong in (bounds([2]), bounds([4]), bounds([4, -1]), torch.tensor([1, 3])):
        with pytest.raises(ValueError, match="cu_seqlens goes from 0 up to the 3 tokens"):
            ops_attention.varlen_attention(q, k, k, wrong, 1.0)
    with pytest.raises(ValueError, match="whole numbers"):
        ops_attention.varlen_attention(q, k, k, bounds([3]).float(), 1.0)
    with pytest.raises(ValueError, match="window of 2 needs causal"):
        ops_attention.varlen_attention(q, k, k, bounds([3]), 1.0, causal=False, window=2)
