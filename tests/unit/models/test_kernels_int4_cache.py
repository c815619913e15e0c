"""Keys and values in four bits and in float8_e4m3fn, in torch: what is kept, where, and attention over it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels import ops, plain, quantized, reference
from callboard.kernels.quantized import Cache, PackedCache, QuantizedCache, read_blocks
from callboard.kernels.ragged import RaggedBatch

FP8 = torch.float8_e4m3fn
SHAPE = (5, 8, 2, 16)
EVERY = torch.arange(SHAPE[0])


def new_cache(format: str, shape: tuple[int, ...] = SHAPE) -> Cache:
    return PackedCache.zeros(shape) if format == "int4" else torch.zeros(shape).to(FP8)


def raw(cache: Cache) -> list[torch.Tensor]:
    if isinstance(cache, PackedCache):
        return [cache.codes, cache.scales, cache.minimums]
    assert isinstance(cache, torch.Tensor)
    return [cache.view(torch.uint8)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2**32))
def test_four_bits_are_within_half_a_step(num_tokens: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = (3 * torch.randn(num_tokens, 2, 16) + 2).to(dtype)
    x[:1, 1] = 0.5  # no step at all: kept exactly
    cache, slots = PackedCache.zeros(SHAPE), torch.randperm(40)[:num_tokens]
    quantized.write_slots(x, cache, slots)
    kept = read_blocks(cache, EVERY, torch.float32).flatten(0, 1)
    wide = x.float()
    low, high = wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
    # Scale and minimum are themselves rounded to half precision, at worst both at the largest code.
    slack = 2**-11 * (low.abs() + (high - low))
    assert ((kept[slots] - wide).abs() <= 0.5001 * (high - low) / 15 + slack).all()
    assert torch.equal(kept[slots][:1, 1], wide[:1, 1])
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[slots] = False
    assert not any(part.flatten(0, 1)[untouched].any() for part in raw(cache))


def test_the_halves_of_a_byte_are_the_halves_of_a_head() -> None:
    cache = PackedCache.zeros((1, 1, 1, 32))
    quantized.write_slots(torch.arange(32).float().flip(0).view(1, 1, 32) % 16, cache, torch.tensor([0]))
    assert cache.codes.flatten().tolist() == [code | code << 4 for code in range(15, -1, -1)]
    assert cache.scales.item() == 1
    assert cache.minimums.item() == 0
    assert cache.shape == (1, 1, 1, 32)
    assert cache.nbytes == 16 + 2 + 2
    with pytest.raises(ValueError, match="15 dimensions"):
        PackedCache.zeros((1, 1, 1, 15))


def test_float8_ends_at_its_largest_number() -> None:
    x = torch.tensor([0.0, 1.0, 448.0, 460.0, 1e6, -1e6, 0.3]).repeat(1, 2, 1)
    cache = torch.zeros(1, 4, 2, 7).to(FP8)
    quantized.write_slots(x, cache, torch.tensor([2]))
    kept = read_blocks(cache, torch.tensor([0]), torch.float32)[0, 2, 0]
    assert kept.tolist() == [0.0, 1.0, 448.0, 448.0, 448.0, -448.0, 0.3125]


@pytest.mark.parametrize("format", ["int4", "float8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_writes_what_the_reference_writes(format: str, dtype: torch.dtype) -> None:
    k, v = (4 * torch.randn(9, 2, 16)).to(dtype), torch.randn(9, 2, 16).to(dtype)
    q, angles, slots = torch.randn(9, 4, 16).to(dtype), torch.randn(9, 8), torch.randperm(40)[:9]
    pairs = [(new_cache(format), new_cache(format)) for _ in range(4)]
    for path, (k_cache, v_cache) in zip((plain, reference), pairs[:2], strict=True):
        path.write_kv(k, v, k_cache, v_cache, slots)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    turned_q, turned_k = reference.rotary(q, k, cos, sin)
    actual = reference.rotary_write(q, k, v, cos, sin, *pairs[2], slots)
    reference.write_kv(turned_k, v, *pairs[3], slots)
    assert torch.equal(actual, turned_q)
    for one, other in (pairs[:2], pairs[2:]):
        for here, there in zip(one, other, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(raw(here), raw(there), strict=True))
    close = plain.rotary_write(q, k, v, cos, sin, new_cache(format), new_cache(format), slots)
    torch.testing.assert_close(close, turned_q, rtol=torch.finfo(dtype).eps, atol=8 * torch.finfo(dtype).eps)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.sampled_from(["int4", "float8"]), st.integers(0, 99))
def test_attention_is_that_over_what_the_cache_holds(lengths: list[int], format: str, seed: int) -> None:
    torch.manual_seed(seed)
    blocks = iter(torch.randperm(4 * 5).tolist())
    tables = [[next(blocks) for _ in range(-(-length // 8))] for length in lengths]
    batch = RaggedBatch.build(lengths, [max(1, length // 2) for length in lengths], tables, 8)
    before = RaggedBatch.build(lengths, lengths, tables, 8)
    caches = new_cache(format, (20, 8, 2, 16)), new_cache(format, (20, 8, 2, 16))
    k, v = torch.randn(2, before.num_tokens, 2, 16)
    ops.write_kv(k, v, *caches, before.slots)
    q = torch.randn(batch.num_tokens, 4, 16)
    held = [read_blocks(cache, torch.arange(20), torch.float64) for cache in caches]
    expected = reference.paged_attention(q.double(), held[0], held[1], batch, 0.25)
    for path in (ops, reference):
        actual = path.paged_attention(q, *caches, batch, 0.25)
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_keys_with_heavy_channels_lose_less_between_their_ends_than_about_zero() -> None:
    """Why there is a minimum: some channels are large in every token, with one sign."""
    torch.manual_seed(0)
    keys = torch.randn(2000, 1, 64)
    heavy = torch.tensor([5, 20, 51])
    keys[..., heavy] += torch.tensor([9.0, 12.0, 7.0])
    cache = PackedCache.zeros((125, 16, 1, 64))
    quantized.write_slots(keys, cache, torch.arange(2000))
    kept = read_blocks(cache, torch.arange(125), torch.float32).flatten(0, 1)
    about_zero = keys.abs().amax(-1, keepdim=True) / 7
    symmetric = (keys / about_zero).round() * about_zero
    assert (kept - keys).pow(2).mean() < 0.5 * (symmetric - keys).pow(2).mean()


def test_int8_is_as_it_was() -> None:
    cache = QuantizedCache(torch.zeros(SHAPE, dtype=torch.int8), torch.zeros(SHAPE[:3]))
    x = torch.randn(3, 2, 16)
    quantized.write_slots(x, cache, torch.tensor([0, 9, 39]))
    kept = read_blocks(cache, EVERY, torch.float32).flatten(0, 1)[[0, 9, 39]]
    assert ((kept - x).abs() <= 0.5001 * x.abs().amax(-1, keepdim=True) / 127).all()
