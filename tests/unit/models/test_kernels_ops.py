"""Each path of each op against the plain reference in float64, on fresh random inputs."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels import ops, plain, reference
from callboard.kernels.ragged import RaggedBatch

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
dtypes = st.sampled_from(list(TOLERANCE))
seeds = st.integers(0, 2**32)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def test_what_triton_does_not_take_goes_to_torch() -> None:
    for x in (torch.zeros(1), torch.zeros(1, dtype=torch.float64), torch.zeros(1, device="meta")):
        assert ops.path_for(x) is plain


@settings(max_examples=30)
@given(st.integers(0, 20), st.integers(1, 40), dtypes, seeds)
def test_norms_products_and_linear(num_tokens: int, half: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    hidden = 2 * half
    x, residual = torch.randn(2, num_tokens, hidden, dtype=dtype)
    weight, matrix = torch.randn(hidden, dtype=dtype), torch.randn(5, hidden, dtype=dtype) / math.sqrt(hidden)
    assert_close(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x.double(), weight.double(), 1e-5), dtype)
    assert_close(ops.silu_mul(x), reference.silu_mul(x.double()), dtype)
    assert_close(ops.linear(x, matrix), reference.linear(x.double(), matrix.double()), dtype)
    # The sum is rounded to the type before it is normalised; so is the reference's.
    total = (x + residual).double()
    normed, added = ops.add_rms_norm(x, residual, weight, 1e-5)
    assert_close(added, total, dtype)
    assert_close(normed, reference.rms_norm(total, weight.double(), 1e-5), dtype)


@settings(max_examples=30)
@given(st.integers(1, 20), st.sampled_from([2, 8, 64]), dtypes, seeds)
def test_rotary_turns_each_pair_by_its_angle(num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    q, k = torch.randn(num_tokens, 6, head_dim, dtype=dtype), torch.randn(num_tokens, 2, head_dim, dtype=dtype)
    angles = torch.randn(num_tokens, head_dim // 2).double()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    turned = ops.rotary(q, k, cos, sin)
    expected = reference.rotary(q.double(), k.double(), cos.double(), sin.double())
    for actual, wanted in zip(turned, expected, strict=True):
        assert_close(actual, wanted, dtype)
    as_complex = torch.complex(*q.double().chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(expected[0], torch.cat([as_complex.real, as_complex.imag], -1), rtol=2e-2, atol=2e-2)


@st.composite
def ragged_batches(draw: st.DrawFn) -> tuple[list[int], list[int], int]:
    """Lengths, new tokens and block size of a batch: odd lengths, block borders, single tokens, empty parts."""
    block_size = draw(st.sampled_from([1, 4, 16]))
    seq_lens = draw(st.lists(st.integers(1, 70), min_size=1, max_size=6))
    query_lens = [draw(st.one_of(st.just(1), st.just(n), st.integers(0, n))) for n in seq_lens]
    return seq_lens, query_lens, block_size


@st.composite
def limits(draw: st.DrawFn) -> tuple[int, float, bool]:
    """What attention may be told beside the batch: window, softcap, whether there are sinks. Often nothing."""
    return draw(
        st.sampled_from([(0, 0.0, False)] * 3 + [(w, c, s) for w in (0, 1, 9) for c in (0, 5.0) for s in (False, True)])
    )


@settings(max_examples=100)
@given(
    ragged_batches(),
    st.sampled_from([(1, 1), (4, 4), (6, 2), (9, 3)]),
    st.sampled_from([8, 64]),
    dtypes,
    limits(),
    seeds,
)
def test_paged_attention_over_any_mixture(
    ragged: tuple[list[int], list[int], int],
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    limits: tuple[int, float, bool],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    seq_lens, query_lens, block_size = ragged
    num_heads, num_kv_heads = heads
    counts = [-(-length // block_size) for length in seq_lens]
    free = torch.randperm(sum(counts) + 3).tolist()
    batch = RaggedBatch.build(seq_lens, query_lens, [[free.pop() for _ in range(n)] for n in counts], block_size)
    # Large values everywhere: what lies outside a sequence must not leak in.
    k_cache, v_cache = 30 * torch.randn(2, sum(counts) + 3, block_size, num_kv_heads, head_dim, dtype=dtype)
    flat = batch.block_tables[:, :, None] * block_size + torch.arange(block_size)
    for seq, length in enumerate(seq_lens):
        slots = flat[seq].flatten()[:length]
        keys, values = torch.randn(2, length, num_kv_heads, head_dim, dtype=dtype)
        ops.write_kv(keys, values, k_cache, v_cache, slots)
    q = torch.randn(batch.num_tokens, num_heads, head_dim, dtype=dtype)
    scale = head_dim**-0.5
    window, softcap, has_sinks = limits
    sinks = torch.randn(num_heads, dtype=dtype) if has_sinks else None
    actual = ops.paged_attention(q, k_cache, v_cache, batch, scale, window, softcap, sinks)
    wide = None if sinks is None else sinks.double()
    expected = reference.paged_attention(
        q.double(), k_cache.double(), v_cache.double(), batch, scale, window, softcap, wide
    )
    assert_close(actual, expected, dtype)


def test_attention_is_causal_attention_over_the_whole_sequence() -> None:
    """The reference itself, against PyTorch's: a prompt in two chunks equals the prompt at once."""
    q, k, v = torch.randn(3, 21, 4, 8, dtype=torch.float64)
    caches = torch.zeros(2, 3, 8, 4, 8, dtype=torch.float64)
    whole = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), is_causal=True
    ).transpose(0, 1)
    out = []
    for start, end in ((0, 13), (13, 21)):
        batch = RaggedBatch.build([end], [end - start], [[2, 0, 1]], 8)
        reference.write_kv(k[start:end], v[start:end], caches[0], caches[1], batch.slots)
        out.append(reference.paged_attention(q[start:end], caches[0], caches[1], batch, 8**-0.5))
    torch.testing.assert_close(torch.cat(out), whole)


def test_a_window_a_cap_and_sinks_are_what_they_say() -> None:
    """The reference itself, written out with plain products for one sequence and one head."""
    q, k, v = torch.randn(3, 12, 1, 8, dtype=torch.float64)
    caches = torch.zeros(2, 2, 8, 1, 8, dtype=torch.float64)
    batch = RaggedBatch.build([12], [12], [[1, 0]], 8)
    reference.write_kv(k, v, caches[0], caches[1], batch.slots)
    sinks = torch.tensor([0.7], dtype=torch.float64)
    actual = reference.paged_attention(q, caches[0], caches[1], batch, 0.5, 4, 2.0, sinks)
    for position in range(12):
        seen = slice(max(0, position - 3), position + 1)
        scores = 2.0 * torch.tanh(0.5 * (k[seen, 0] @ q[position, 0]) / 2.0)
        weights = scores.exp() / (scores.exp().sum() + math.exp(0.7))
        torch.testing.assert_close(actual[position, 0], weights @ v[seen, 0])


@pytest.mark.parametrize("path", [plain, reference])
def test_write_kv_writes_the_named_slots_and_no_others(path: ModuleType) -> None:
    k, v = torch.randn(2, 3, 2, 4)
    k_cache, v_cache = torch.full((2, 5, 4, 2, 4), -1.0)
    path.write_kv(k, v, k_cache, v_cache, torch.tensor([7, 0, 18]))
    assert torch.equal(k_cache.flatten(0, 1)[[7, 0, 18]], k)
    assert torch.equal(v_cache.flatten(0, 1)[[7, 0, 18]], v)
    assert int((k_cache == -1).sum()) == k_cache.numel() - k.numel()


def test_arguments_that_do_not_go_together_are_named() -> None:
    cache = torch.zeros(4, 16, 2, 8)
    batch = RaggedBatch.build([3], [3], [[0]], 16)
    for q in (torch.zeros(4, 4, 8), torch.zeros(3, 3, 8), torch.zeros(3, 4, 6)):
        with pytest.raises(ValueError, match="q"):
            ops.paged_attention(q, cache, cache, batch, 1.0)
    with pytest.raises(ValueError, match="blocks of"):
        ops.paged_attention(torch.zeros(3, 4, 8), cache, cache, RaggedBatch.build([3], [3], [[0]], 8), 1.0)
    with pytest.raises(ValueError, match="cannot hold"):
        RaggedBatch.build([17], [1], [[0]], 16)
    with pytest.raises(ValueError, match="new tokens"):
        RaggedBatch.build([2], [3], [[0]], 16)
