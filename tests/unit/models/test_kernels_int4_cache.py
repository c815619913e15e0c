"""Keys and values in four bits and in float8_e4m3fn, in torch: what is kept, where, and attention over it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels import ops, plain, quantized, reference
from callboard.kernels.packed_heads import pack_heads, turn, turn_back, unpack_turned
from callboard.kernels.quantized import Cache, PackedCache, QuantizedCache, read_blocks, read_turned
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


def hadamard(size: int) -> torch.Tensor:
    """Sylvester's, by its definition."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def between_ends(groups: torch.Tensor) -> torch.Tensor:
    """Each group [..., size] as sixteen steps from its least to its largest value give it back."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    low, scale = low.half().float(), ((high - low) / 15).half().float()
    steps = torch.where(scale > 0, (groups - low) / scale, 0)
    return steps.round().clamp(0, 15) * scale + low


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_turn_spreads_a_dimension_over_all_and_comes_back(size: int, dtype: torch.dtype) -> None:
    matrix, undo = (turned(torch.eye(size, dtype=dtype)) for turned in (turn, turn_back))
    assert torch.equal(matrix.sign().double(), hadamard(size))
    assert matrix.abs().unique().numel() == undo.abs().unique().numel() == 1
    assert torch.equal(matrix.double() @ undo.double(), torch.eye(size, dtype=torch.float64))
    assert matrix.abs().max() <= 2 * size**-0.5
    q, k = torch.randn(2, 7, size, dtype=torch.float64)
    torch.testing.assert_close(turn_back(q) @ turn(k).T, q @ k.T)
    torch.testing.assert_close(turn_back(turn(k)), k)


def test_heads_of_other_sizes_are_not_turned() -> None:
    x = torch.randn(3, 80)
    assert turn(x) is x
    assert turn_back(x) is x


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 20),
    st.sampled_from([16, 12, 40, 64]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**32),
)
def test_no_quarter_of_a_head_loses_more_than_by_rounding_between_its_ends(
    num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = (3 * torch.randn(num_tokens, 2, head_dim) + 2).to(dtype)
    x[:1, 1] = 0
    cache, slots = PackedCache.zeros((5, 8, 2, head_dim)), torch.randperm(40)[:num_tokens]
    quantized.write_slots(x, cache, slots)
    turned = read_turned(cache, EVERY, torch.float32).flatten(0, 1)[slots].unflatten(-1, (4, -1))
    quarters = turn(x.float()).unflatten(-1, (4, -1))
    lost, most = ((kept - quarters).square().sum(-1) for kept in (turned, between_ends(quarters)))
    assert (lost <= most * (1 + 1e-5) + 1e-10).all()
    kept = read_blocks(cache, EVERY, torch.float32).flatten(0, 1)[slots]
    torch.testing.assert_close(turn_back(turned.flatten(-2)), kept)
    assert not kept[:1, 1].any()
    untouched = torch.ones(40, dtype=torch.bool)
    untouched[slots] = False
    assert not any(part.flatten(0, 1)[untouched].any() for part in raw(cache))


def test_many_quarters_lose_less_than_by_rounding_between_their_ends() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 3, 64)
    quarters = turn(x).unflatten(-1, (4, -1))
    kept = unpack_turned(*pack_heads(x), torch.float32).unflatten(-1, (4, -1))
    assert (kept - quarters).square().mean() < 0.9 * (between_ends(quarters) - quarters).square().mean()


def test_the_halves_of_a_byte_are_the_halves_of_a_head() -> None:
    cache = PackedCache.zeros((1, 1, 1, 12))  # whose heads are not turned
    quarters = [[0, 7, 15], [-7, 1, 23], [0, 7.5, 3.5], [1, 1, 1]]
    codes = [[0, 7, 15], [0, 4, 15], [0, 15, 7], [0, 0, 0]]
    quantized.write_slots(torch.tensor(quarters).view(1, 1, 12), cache, torch.tensor([0]))
    low, high = codes[0] + codes[1], codes[2] + codes[3]
    assert cache.codes.flatten().tolist() == [a | b << 4 for a, b in zip(low, high, strict=True)]
    assert cache.scales.flatten().tolist() == [1, 2, 0.5, 0]
    assert cache.minimums.flatten().tolist() == [0, -7, 0, 1]
    assert read_blocks(cache, torch.tensor([0]), torch.float32).view(4, 3).tolist() == quarters
    assert cache.shape == (1, 1, 1, 12)
    assert cache.nbytes == 6 + 8 + 8
    with pytest.raises(ValueError, match="14 dimensions"):
        PackedCache.zeros((1, 1, 1, 14))


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


def test_keys_with_heavy_channels_lose_less_when_they_are_turned() -> None:
    """Why they are: some channels are large in every token, with one sign."""
    torch.manual_seed(0)
    keys = torch.randn(2000, 1, 64)
    heavy = torch.tensor([5, 20, 51])
    keys[..., heavy] += torch.tensor([9.0, 12.0, 7.0])
    cache = PackedCache.zeros((125, 16, 1, 64))
    quantized.write_slots(keys, cache, torch.arange(2000))
    kept = read_blocks(cache, torch.arange(125), torch.float32).flatten(0, 1)
    as_they_are = between_ends(keys.unflatten(-1, (4, -1))).flatten(-2)
    assert (kept - keys).square().mean() < 0.7 * (as_they_are - keys).square().mean()


def test_int8_is_as_it_was() -> None:
    cache = QuantizedCache(torch.zeros(SHAPE, dtype=torch.int8), torch.zeros(SHAPE[:3]))
    x = torch.randn(3, 2, 16)
    quantized.write_slots(x, cache, torch.tensor([0, 9, 39]))
    kept = read_blocks(cache, EVERY, torch.float32).flatten(0, 1)[[0, 9, 39]]
    assert ((kept - x).abs() <= 0.5001 * x.abs().amax(-1, keepdim=True) / 127).all()
