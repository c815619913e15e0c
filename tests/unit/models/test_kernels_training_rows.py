"""Norms, rotary positions, gates, losses and attention of training: each path and its gradients against the reference
in float64, and the reference's gradients against differences.

Tolerance: a result is rounded to its type once or twice, sums are in float32, and a gradient of a weight is a sum over
rows. So some units in the last place of the type, of the largest number of each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import path

from callboard.kernels import (
    cross_entropy,
    native_training,
    ops_attention,
    ops_training,
    reference,
    reference_attention,
)

__all__ = ["path"]  # a fixture
Op = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
UNITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = (torch.float32, torch.bfloat16)
anything = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def check(op: Op, expected: Op, inputs: Sequence[torch.Tensor], rest: Sequence[object]) -> None:
    """Results and gradients of both; `rest` are arguments without one."""
    wide = [x.detach().double().requires_grad_() for x in inputs]
    outs, wide_outs = op(*inputs, *rest), expected(*wide, *rest)
    outs, wide_outs = (x if isinstance(x, tuple) else (x,) for x in (outs, wide_outs))
    grads = [torch.randn(x.shape).to(x.dtype) for x in outs]
    found = torch.autograd.grad(outs, inputs, grads, allow_unused=True, materialize_grads=True)
    there = torch.autograd.grad(
        wide_outs, wide, [x.double() for x in grads], allow_unused=True, materialize_grads=True
    )  # fmt: skip
    for here, wanted in zip((*outs, *found), (*wide_outs, *there), strict=True):
        assert here.dtype == inputs[0].dtype
        assert here.shape == wanted.shape
        largest = float(wanted.detach().abs().amax()) if wanted.numel() else 0.0
        torch.testing.assert_close(here.double(), wanted, rtol=0, atol=UNITS[inputs[0].dtype] * max(1.0, largest))


def gate_of_halves(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return reference.silu_mul(torch.cat([gate, up], -1))


def test_gradients_of_the_references() -> None:
    def double(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64).requires_grad_()

    assert torch.autograd.gradcheck(lambda x, w: reference.rms_norm(x, w, 1e-3), (double(3, 5), double(5)))
    assert torch.autograd.gradcheck(gate_of_halves, (double(3, 5), double(3, 5)))
    angles = torch.randn(3, 2, dtype=torch.float64)
    for interleaved in (False, True):
        assert torch.autograd.gradcheck(
            lambda q, k, turn=interleaved: reference.rotary(q, k, angles.cos(), angles.sin(), turn),
            (double(3, 2, 5), double(3, 1, 5)),
        )


@anything
@given(st.integers(0, 300), st.integers(1, 70), st.sampled_from(DTYPES), st.booleans())
def test_a_norm(path: str, rows: int, hidden: int, dtype: torch.dtype, adds: bool) -> None:
    x, weight = randn(1, rows, hidden, dtype=dtype), randn(hidden, dtype=dtype)
    if adds:
        residual = randn(1, rows, hidden, dtype=dtype)
        with torch.no_grad():  # halves, so that the sum is exact in every type
            x.copy_((x * 4).round() / 4)
            residual.copy_((residual * 4).round() / 4)

        def expected(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return reference.add_rms_norm(inputs[0], inputs[1], inputs[2], 1e-5)

        def actual(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return ops_training.add_rms_norm(inputs[0], inputs[1], inputs[2], 1e-5)

        check(actual, expected, [x, residual, weight], [])
    else:
        check(ops_training.rms_norm, reference.rms_norm, [x, weight], [1e-5])


def test_a_norm_whose_weight_is_frozen_and_of_which_only_the_sum_is_used(path: str) -> None:
    x, residual, weight = randn(3, 8), randn(3, 8), torch.ones(8)
    normed, total = ops_training.add_rms_norm(x, residual, weight, 1e-5)
    (normed.sum() + total.sum()).backward()
    assert x.grad is not None
    assert weight.grad is None
    grads = torch.autograd.grad(ops_training.add_rms_norm(x, residual, weight, 1e-5)[1].sum(), (x, residual))
    assert all(torch.equal(grad, torch.ones(3, 8)) for grad in grads)


@anything
@given(st.integers(0, 300), st.integers(1, 70), st.sampled_from(DTYPES))
def test_a_norm_and_what_it_is_of(path: str, rows: int, hidden: int, dtype: torch.dtype) -> None:
    def expected(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.rms_norm(x, weight, eps), x

    check(
        ops_training.rms_norm_and_input,
        expected,
        (randn(rows, hidden, dtype=dtype), randn(hidden, dtype=dtype)),
        (1e-5,),
    )


@anything
@given(st.integers(0, 40), st.integers(1, 70), st.sampled_from(DTYPES))
def test_a_gate(path: str, rows: int, width: int, dtype: torch.dtype) -> None:
    both = (8 * torch.randn(rows, 2 * width + 3)).to(dtype)
    gate, up = (x.detach().requires_grad_() for x in (both[:, :width], both[:, -width:]))
    check(ops_training.silu_mul, gate_of_halves, [gate, up], [])


def test_a_gate_far_out_has_a_slope_of_zero_or_one(path: str) -> None:
    gate, up = torch.tensor([-3e38, -200.0, 200.0, 3e38]).requires_grad_(), torch.ones(4).requires_grad_()
    ops_training.silu_mul(gate, up).sum().backward()
    torch.testing.assert_close(gate.grad, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(up.grad, torch.tensor([0.0, 0.0, 200.0, 3e38]))


@anything
@given(
    st.integers(0, 35),
    st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    st.sampled_from([(8, 4), (64, 32), (80, 40), (20, 3), (96, 24)]),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_rotary_positions(
    path: str,
    tokens: int,
    heads: tuple[int, int],
    sizes: tuple[int, int],
    interleaved: bool,
    dtype: torch.dtype,
    is_wide: bool,
) -> None:
    head_dim, pairs = sizes
    both = torch.randn(tokens, sum(heads), head_dim + 2).to(dtype)[..., :head_dim]
    q, k = (x.detach().requires_grad_() for x in both.split(heads, 1))
    angles = torch.randn(tokens, pairs)
    cos, sin = (table.to(torch.float32 if is_wide else dtype) for table in (angles.cos(), angles.sin()))

    def expected(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return reference.rotary(q, k, cos.double(), sin.double(), interleaved)

    check(lambda q, k: ops_training.rotary(q, k, cos, sin, interleaved), expected, [q, k], [])


@anything
@given(
    st.lists(st.integers(0, 150), min_size=1, max_size=4),
    st.sampled_from([(1, 1), (4, 2), (9, 3)]),
    st.sampled_from([16, 64, 80, 128]),
    st.sampled_from([(True, 0), (True, 1), (True, 50), (False, 0)]),
    st.sampled_from(DTYPES),
)
def test_attention(
    path: str,
    lengths: list[int],
    heads: tuple[int, int],
    head_dim: int,
    limits: tuple[bool, int],
    dtype: torch.dtype,
) -> None:
    """Cut out of one product, as a fused one gives it."""
    fused = torch.randn(sum(lengths), heads[0] + 2 * heads[1], head_dim + 16).to(dtype)[..., :head_dim]
    q, k, v = (x.detach().requires_grad_() for x in fused.split([heads[0], heads[1], heads[1]], 1))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    rest = (cu_seqlens, 1.5 * head_dim**-0.5, *limits)
    check(ops_attention.varlen_attention, reference_attention.varlen_attention, [q, k, v], rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [0, 100, 700])
def test_attention_of_a_long_sequence_is_made_of_parts(path: str, window: int, dtype: torch.dtype) -> None:
    q, k, v = (randn(1300, heads, 64, dtype=dtype) for heads in (2, 1, 1))
    rest = (torch.tensor([0, 1290, 1300]), 0.2, True, window)
    check(ops_attention.varlen_attention, reference_attention.varlen_attention, [q, k, v], rest)


@anything
@given(
    st.integers(0, 9),
    st.integers(1, 70),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.integers(0, 2**32),
)
def test_native_losses_are_those_of_torch(
    rows: int, vocab: int, smoothing: float, with_gradient: bool, dtype: torch.dtype, seed: int
) -> None:
    if why := native_training.unavailable():
        pytest.skip(why)
    torch.manual_seed(seed)
    logits = (5 * torch.randn(rows, vocab + 3)).to(dtype)[:, :vocab]
    targets = torch.randint(0, vocab, (rows,))
    targets[torch.rand(rows) < 0.3] = -1
    wide = logits.double()
    expected = cross_entropy.row_losses(wide, targets, cross_entropy.Settings(-1, 0.0, smoothing), with_gradient)
    before = logits.clone()
    losses = native_training.row_losses(logits, targets, -1, smoothing, with_gradient)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    if with_gradient:
        torch.testing.assert_close(logits.double(), wide, rtol=0, atol=UNITS[dtype] / 4)
    else:
        assert torch.equal(logits, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen_in_the_result(path: str, bad: float) -> None:
    """A run skips such a step; numbers that look right would go into the weights."""
    hidden, weight = torch.randn(3, 16), torch.randn(40, 16)
    hidden[1, 2] = bad
    loss, _ = ops_training.linear_cross_entropy(hidden.requires_grad_(), weight, torch.zeros(3).long())
    assert not loss.isfinite()
    x = torch.randn(3, 20)
    x[1, 2] = bad
    assert not ops_training.rms_norm(x, torch.ones(20), 1e-5)[1].isfinite().all()
    assert not ops_training.silu_mul(x, -x)[1].isfinite().all()
    q, k, v = (torch.randn(40, 1, 64) for _ in range(3))
    k[20, 0, 3] = bad
    attended = ops_attention.varlen_attention(q, k, v, torch.tensor([0, 40]), 1.0)
    assert attended[:20].isfinite().all()
    assert bad == float("inf") or not attended[20:].isfinite().any()


def test_threads_change_no_bit() -> None:
    if why := native_training.unavailable():
        pytest.skip(why)
    before = torch.get_num_threads()
    runs: list[list[torch.Tensor]] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            q, k, v = randn(300, 4, 64), randn(300, 2, 64), randn(300, 2, 64)
            x, weight = randn(600, 40), randn(40)
            out = ops_attention.varlen_attention(q, k, v, torch.tensor([0, 20, 300]), 0.3)
            normed = ops_training.rms_norm(x, weight, 1e-5)
            outs = (out, normed)
            grads = torch.autograd.grad(outs, (q, k, v, x, weight), [torch.randn(y.shape) for y in outs])
            runs.append([*outs, *grads])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(here, first) for here, first in zip(run, runs[0], strict=True))


def test_what_does_not_go_together_is_named() -> None:
    x = torch.ones(3, 4)
    with pytest.raises(ValueError, match="does not go with rows"):
        ops_training.rms_norm(x, torch.ones(5), 1e-5)
    with pytest.raises(ValueError, match=r"residual is torch.float64"):
        ops_training.add_rms_norm(x, x.double(), torch.ones(4), 1e-5)
    with pytest.raises(ValueError, match=r"up torch.float32 of"):
        ops_training.silu_mul(x, x[:2])
    q, cos = torch.ones(3, 2, 4), torch.ones(3, 3)
    with pytest.raises(ValueError, match="have no 3 pairs"):
        ops_training.rotary(q, q, cos, cos)
    with pytest.raises(ValueError, match=r"sin torch.float32 of"):
        ops_training.rotary(q, q, cos, cos[:2])
    with pytest.raises(ValueError, match=r"k torch.float32 of"):
        ops_training.rotary(q, q[:2], cos[:, :1], cos[:, :1])
