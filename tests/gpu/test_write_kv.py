"""What is written into caches, and what turns on the way, against the reference in float64.

Rounding to float8_e4m3fn is for cards: the interpreter has another.

Tolerance: turned numbers are rounded once to their type, a unit in the last place of the larger of the pair. In a
cache of codes what stands for a number is within half a step of it (and the thousandth of a step that rounding in
float32 may add), the step being that of the turned row.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from callboard.kernels import reference
from callboard.kernels.gpu.cache_formats import has_fp8
from callboard.kernels.gpu.launch import interpreted
from callboard.kernels.gpu.write_kv import rotary_write, write_kv
from callboard.kernels.packed_heads import pack_heads, unpack_heads
from callboard.kernels.quantized import (
    Cache,
    PackedCache,
    QuantizedCache,
    quantize_heads,
    read_blocks,
    to_kept,
)

FORMATS = ["float32", "float16", "int8", "int4"]
if not interpreted():  # which does not round to it
    FORMATS.append("float8_e4m3fn")


@pytest.fixture(params=FORMATS)
def format(request: pytest.FixtureRequest, device: torch.device) -> str:
    if request.param == "float8_e4m3fn" and not has_fp8(device):
        pytest.skip("this card has no float8_e4m3fn")
    return request.param


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


def poisoned_cache(format: str, shape: tuple[int, ...], device: torch.device) -> Cache:
    if format == "int8":
        codes = torch.full(shape, 77, dtype=torch.int8, device=device)
        return QuantizedCache(codes, torch.full(shape[:3], torch.nan, device=device))
    if format == "int4":
        cache = PackedCache.zeros(shape, device)
        for x, value in ((cache.codes, 0x77), (cache.scales, torch.nan), (cache.minimums, torch.nan)):
            x.fill_(value)
        return cache
    return torch.full(shape, torch.nan, device=device).to(getattr(torch, format))


def kept_of(cache: Cache) -> torch.Tensor:
    return read_blocks(cache, torch.arange(cache.shape[0], device=device_of(cache)), torch.float64).flatten(0, 1)


def device_of(cache: Cache) -> torch.device:
    return cache.device if isinstance(cache, torch.Tensor) else cache.codes.device


def assert_holds(cache: Cache, slots: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    """`expected` float64 [num_tokens, num_kv_heads, head_dim] in these slots, and nothing in any other."""
    kept = kept_of(cache)
    unit = torch.finfo(dtype).eps
    slack = unit * (expected.abs().amax() + 1)
    if isinstance(cache, torch.Tensor):
        info = torch.finfo(cache.dtype)
        limit = slack + expected.abs() * info.eps + info.smallest_normal * info.eps
    elif isinstance(cache, QuantizedCache):
        top = expected.abs().amax(-1, keepdim=True)
        limit = 0.501 * top / 127 * (1 + 1e-3) + 2 * slack
    else:
        # Torch loses as much, in squares of a head: rounding on the way may tip which ends are drawn in how far.
        best = unpack_heads(*pack_heads(expected), torch.float64)
        lost, least = ((x - expected).square().sum(-1).sqrt() for x in (kept[slots], best))
        assert (lost <= 1.02 * least + 2 * slack * expected.shape[-1] ** 0.5).all()
        limit = torch.inf
    assert ((kept[slots] - expected).abs() <= limit).all()
    untouched = torch.ones(len(kept), dtype=torch.bool, device=slots.device)
    untouched[slots] = False
    if isinstance(cache, torch.Tensor):
        assert kept[untouched].isnan().all()
    else:
        assert cache.scales.flatten(0, 1)[untouched].isnan().all()
        assert (cache.codes.flatten(0, 1)[untouched] == (77 if isinstance(cache, QuantizedCache) else 0x77)).all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("num_tokens", "heads", "head_dim", "num_pairs"),
    [
        (1, (1, 1), 64, 32),
        (5, (6, 2), 80, 40),  # no power of two
        (4, (3, 1), 96, 16),  # a part of each head turns
        (3, (40, 5), 128, 64),
        (2, (2, 2), 256, 12),
        (0, (4, 4), 64, 32),
    ],
)
def test_queries_turn_and_keys_and_values_are_written(
    num_tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    num_pairs: int,
    interleaved: bool,
    format: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    fused = torch.randn(num_tokens, heads[0] + 2 * heads[1], head_dim, device=device).to(dtype)
    q, k, v = fused.split([heads[0], heads[1], heads[1]], 1)
    angles = 10 * torch.randn(num_tokens, num_pairs, device=device)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    shape = (3, 8, heads[1], head_dim)
    caches = [poisoned_cache(format, shape, device) for _ in range(2)]
    slots = torch.randperm(24, device=device)[:num_tokens]
    turned = rotary_write(q, k, v, cos, sin, caches[0], caches[1], slots, interleaved)
    expected = reference.rotary(q.double(), k.double(), cos.double(), sin.double(), interleaved)
    unit = torch.finfo(dtype).eps
    assert turned.is_contiguous()
    torch.testing.assert_close(turned.double(), expected[0], rtol=unit, atol=8 * unit)
    if num_tokens:
        assert_holds(caches[0], slots, expected[1], dtype)
        assert_holds(caches[1], slots, v.double(), dtype)


def test_what_does_not_turn_is_written_as_torch_writes_it(
    format: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Code for code; but a card may round a product and a sum at once, which matters halfway between codes."""
    k, v = ((3 * torch.randn(6, 3, 80, device=device) + 1).to(dtype) for _ in range(2))
    k[0, 1] = 0
    v[2, 0] = 5
    caches = [poisoned_cache(format, (2, 8, 3, 80), device) for _ in range(2)]
    slots = torch.tensor([9, 0, 3, 8, 7, 15], dtype=torch.int32, device=device)
    write_kv(k, v, caches[0], caches[1], slots)
    for x, cache in ((k, caches[0]), (v, caches[1])):
        assert_holds(cache, slots.long(), x.double(), dtype)
        if isinstance(cache, QuantizedCache):
            codes, scales = quantize_heads(x)
            assert torch.equal(cache.scales.flatten(0, 1)[slots.long()], scales)
            away = cache.codes.flatten(0, 1)[slots.long()].int() - codes.int()
        elif isinstance(cache, PackedCache):
            continue  # sums have another order there: see `assert_holds`
        else:
            away = kept_of(cache)[slots.long()] - to_kept(x, cache.dtype).double()
        assert int((away != 0).sum()) <= (0 if device.type == "cpu" else x.numel() // 500)


def test_a_token_without_a_slot_is_not_written(format: str, device: torch.device) -> None:
    q, k, v = (torch.randn(3, heads, 64, device=device) for heads in (4, 2, 2))
    angles = torch.randn(3, 32, device=device)
    caches = [poisoned_cache(format, (1, 8, 2, 64), device) for _ in range(2)]
    slots = torch.tensor([4, -1, -1], device=device)
    turned = rotary_write(q, k, v, angles.cos(), angles.sin(), caches[0], caches[1], slots)
    expected = reference.rotary(q.double(), k.double(), angles.cos().double(), angles.sin().double())
    torch.testing.assert_close(turned.double(), expected[0], rtol=1e-6, atol=1e-6)
    assert_holds(caches[0], slots[:1], expected[1][:1], torch.float32)
    assert_holds(caches[1], slots[:1], v[:1].double(), torch.float32)


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    q, k = torch.ones(3, 4, 64, device=device), torch.ones(3, 2, 64, device=device)
    cos, cache = torch.ones(3, 32, device=device), torch.ones(1, 8, 2, 64, device=device)
    slots = torch.arange(3, device=device)
    with pytest.raises(ValueError, match="v has the shape"):
        write_kv(k, k[:2], cache, cache, slots)
    with pytest.raises(ValueError, match="2 slots for 3 tokens"):
        write_kv(k, k, cache, cache, slots[:2])
    codes = QuantizedCache(cache.to(torch.int8), torch.ones(1, 8, 2, device=device))
    with pytest.raises(ValueError, match="v_cache is int8"):
        write_kv(k, k, cache, codes, slots)
    with pytest.raises(ValueError, match="k_cache is plain of"):
        write_kv(k, k, cache[:, :, :1], cache, slots)
    with pytest.raises(ValueError, match="k_cache is int64"):
        write_kv(k, k, cache.long(), cache, slots)
    with pytest.raises(ValueError, match="sin has the shape"):
        rotary_write(q, k, k, cos, cos[:, :3], cache, cache, slots)
    with pytest.raises(ValueError, match="k has the shape"):
        rotary_write(q[:2], k, k, cos, cos, cache, cache, slots)
    with pytest.raises(ValueError, match="no quarters"):
        PackedCache.zeros((1, 8, 2, 62))
