"""Paged attention against the reference in float64, on what the caches hold.

Tolerance: scores and sums are in float32; weights of the softmax are rounded to the type of q, and so is the result,
whose values are of the size of one: some units in the last place of that type. In float32 on a card products are three
of tf32, which leave some 2^-20 of a score of the size of ten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from callboard.kernels import reference
from callboard.kernels.gpu import paged_attention as module
from callboard.kernels.gpu import paged_tiles
from callboard.kernels.gpu.cache_formats import has_fp8
from callboard.kernels.gpu.paged_attention import paged_attention
from callboard.kernels.packed_heads import unpack_heads
from callboard.kernels.quantized import Cache, PackedCache, QuantizedCache
from callboard.kernels.ragged import RaggedBatch


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


@dataclass(frozen=True)
class Case:
    """(length, new tokens) of each sequence, and how heads and blocks are."""

    sequences: list[tuple[int, int]]
    heads: tuple[int, int] = (4, 2)
    head_dim: int = 64
    block_size: int = 16
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False


DECODES = [(1, 1), (17, 1), (32, 1), (70, 1)]
MIXED = [(5, 5), (40, 1), (64, 37), (33, 33), (0, 0), (20, 0), (16, 2)]


def build(case: Case, device: torch.device) -> RaggedBatch:
    """Blocks in any order; entries of the tables past a sequence's length are of a block that does not exist."""
    lengths, counts = [length for length, _ in case.sequences], [count for _, count in case.sequences]
    blocks = [-(-length // case.block_size) for length in lengths]
    free = torch.randperm(sum(blocks) + 1)[1:].tolist()
    tables = [[free.pop() for _ in range(n)] for n in blocks]
    batch = RaggedBatch.build(lengths, counts, tables, case.block_size, device)
    for row, n in zip(batch.block_tables, blocks, strict=True):
        row[n:] = 1 << 40
    return batch


def num_blocks(case: Case) -> int:
    return sum(-(-length // case.block_size) for length, _ in case.sequences) + 2


def poisoned_outside(cache: torch.Tensor, case: Case, batch: RaggedBatch) -> torch.Tensor:
    """The cache with NaN wherever no sequence has a token."""
    out = torch.full_like(cache, torch.nan)
    for table, (length, _) in zip(batch.block_tables, case.sequences, strict=True):
        at = torch.arange(length, device=cache.device)
        slots = table[at // case.block_size] * case.block_size + at % case.block_size
        out.flatten(0, 1)[slots] = cache.flatten(0, 1)[slots]
    return out


def check(
    case: Case, batch: RaggedBatch, caches: tuple[Cache, Cache], wide: tuple[Cache, Cache], dtype: torch.dtype
) -> None:
    """The kernel on `caches` against the reference on `wide`, the same numbers in a type that it takes."""
    device = batch.seq_lens.device
    q = torch.randn(batch.num_tokens, case.heads[0], case.head_dim, device=device).to(dtype)
    sinks = torch.randn(case.heads[0], device=device).to(dtype) if case.sinks else None
    scale = 1.5 * case.head_dim**-0.5
    actual = paged_attention(q, *caches, batch, scale, case.window, case.softcap, sinks)
    expected = reference.paged_attention(
        q.double(), *wide, batch, scale, case.window, case.softcap, None if sinks is None else sinks.double()
    )
    assert actual.is_contiguous()
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def plain(case: Case, batch: RaggedBatch, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (num_blocks(case), case.block_size, case.heads[1], case.head_dim)
    k, v = (torch.randn(shape, device=batch.seq_lens.device).to(dtype) for _ in range(2))
    return poisoned_outside(k, case, batch), poisoned_outside(v, case, batch)


def widened(cache: torch.Tensor) -> torch.Tensor:
    """For the reference, which takes whole blocks: zero times NaN would be NaN."""
    return cache.double().nan_to_num(0)


def check_plain(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    batch = build(case, device)
    caches = plain(case, batch, dtype)
    check(case, batch, caches, (widened(caches[0]), widened(caches[1])), dtype)


@pytest.mark.parametrize(
    "case",
    [
        Case(DECODES),
        Case(MIXED),
        Case([(1, 1)], heads=(1, 1)),
        Case([(130, 130)], heads=(1, 1)),
        Case([(50, 50), (3, 3)], heads=(9, 3)),
        Case(MIXED, heads=(3, 3), window=7),
        Case(MIXED, window=33, softcap=4.0, sinks=True),
        Case(DECODES, heads=(8, 1), window=20, sinks=True),
        Case(DECODES, heads=(20, 1), softcap=2.0),
        Case(MIXED, block_size=1),
        Case(MIXED, block_size=24),
        Case([(33, 1), (65, 20)], block_size=128),
        Case([(0, 0)]),
    ],
    ids=str,
)
def test_any_mixture_of_prompts_and_decodes(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    check_plain(case, device, dtype)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 96, 112, 120, 128, 192, 256])
def test_heads_of_any_size(head_dim: int, device: torch.device, dtype: torch.dtype) -> None:
    check_plain(Case([(19, 1), (37, 35)], head_dim=head_dim), device, dtype)


@pytest.mark.parametrize(("window", "sinks"), [(0, False), (300, True)])
def test_keys_divided_among_programs(
    window: int, sinks: bool, device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences of one split, of several, and of all that were launched, in both launches."""
    launched: list[int] = []
    num_splits = module._num_splits

    def spied(*arguments: Any) -> int:
        launched.append(num_splits(*arguments))
        return launched[-1]

    monkeypatch.setattr(module.split, "num_processors", lambda device: 40)
    monkeypatch.setattr(module, "_num_splits", spied)
    long = [(520, 1), (3, 1), (257, 1), (600, 70)]
    check_plain(Case(long[:3], heads=(2, 1), window=window, sinks=sinks), device, dtype)
    check_plain(Case(long, heads=(2, 1), window=window, sinks=sinks), device, dtype)
    assert len(launched) == 3
    assert min(launched) > 1
    assert paged_tiles.MIN_KEYS.value < 257  # or nothing above is divided


@pytest.mark.parametrize("known", [True, False])
def test_what_splits_need_does_not_grow_with_a_prompt_beside_them(
    known: bool, device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decodes and a few guessed tokens whose keys are divided, in a step with a prompt: its tokens take no room."""
    rows: list[int] = []
    parts = module._parts

    def spied(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        made = parts(*arguments)
        if arguments[1] > 1:
            rows.append(made[0].shape[1])
        return made

    monkeypatch.setattr(module.split, "num_processors", lambda device: 8)
    monkeypatch.setattr(module, "_parts", spied)
    case = Case([(90, 90), (600, 1), (0, 0), (300, 2)], heads=(16, 1), head_dim=16)
    batch = build(case, device)
    if not known:
        batch = RaggedBatch(
            batch.positions, batch.slots, batch.block_tables, batch.seq_lens, batch.query_starts, batch.block_size
        )
    caches = plain(case, batch, dtype)
    check(case, batch, caches, (widened(caches[0]), widened(caches[1])), dtype)
    few = module.MAX_FEW_ROWS // case.heads[0]
    assert rows[0] == few * len(case.sequences)  # the launch for few queries is the first


@pytest.mark.parametrize("sequences", [DECODES[2:], [(40, 3), (33, 1)]], ids=str)
def test_seventy_one_heads_to_one(sequences: list[tuple[int, int]], device: torch.device, dtype: torch.dtype) -> None:
    """Falcon-7B's."""
    check_plain(Case(sequences, heads=(71, 1)), device, dtype)


def test_what_is_launched_does_not_follow_from_values(device: torch.device, dtype: torch.dtype) -> None:
    """A batch as a CUDA graph holds it, its lengths known to the card alone, also where sequences share its rows
    unevenly."""
    for sequences in ([(30, 1), (4, 1), (0, 0)], [(9, 0), (70, 3), (0, 0)], [(40, 0), (41, 41)]):
        case = Case(sequences)
        known = build(case, device)
        batch = RaggedBatch(
            known.positions, known.slots, known.block_tables, known.seq_lens, known.query_starts, known.block_size
        )
        caches = plain(case, batch, dtype)
        check(case, batch, caches, (widened(caches[0]), widened(caches[1])), dtype)
        assert not batch.plans


def test_a_row_without_a_sequence_gets_zeros(device: torch.device, dtype: torch.dtype) -> None:
    batch = RaggedBatch(
        positions=torch.zeros(2, dtype=torch.int64, device=device),
        slots=torch.zeros(2, dtype=torch.int64, device=device),
        block_tables=torch.zeros(2, 3, dtype=torch.int64, device=device),
        seq_lens=torch.tensor([1, 0], device=device),
        query_starts=torch.tensor([0, 1, 2], device=device),
        block_size=16,
    )
    q = torch.randn(2, 4, 64, device=device).to(dtype)
    cache = torch.full((1, 16, 2, 64), torch.nan, device=device, dtype=dtype)
    cache[0, 0] = torch.arange(64, device=device)
    out = paged_attention(q, cache, cache, batch, 0.1)
    assert torch.equal(out[0], cache[0, 0, :1].expand(4, -1))
    assert not out[1].any()


@pytest.mark.parametrize("case", [Case(MIXED), Case(DECODES, heads=(6, 2), head_dim=80, window=30)], ids=str)
def test_caches_in_int8(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    batch = build(case, device)
    shape = (num_blocks(case), case.block_size, case.heads[1], case.head_dim)
    caches = tuple(
        QuantizedCache(
            torch.randint(-127, 128, shape, dtype=torch.int8, device=device),
            poisoned_outside((0.005 + 0.02 * torch.rand(shape[:3], device=device))[..., None], case, batch)[..., 0],
        )
        for _ in range(2)
    )
    wide = [(cache.codes * cache.scales[..., None].double()).nan_to_num(0) for cache in caches]
    check(case, batch, (caches[0], caches[1]), (wide[0], wide[1]), dtype)


@pytest.mark.parametrize(
    "case",
    [Case(MIXED), Case(MIXED, head_dim=96, softcap=3.0), Case(DECODES, heads=(6, 2), head_dim=80, window=30)],
    ids=str,
)
def test_caches_in_four_bits(case: Case, device: torch.device, dtype: torch.dtype) -> None:
    batch = build(case, device)
    shape = (num_blocks(case), case.block_size, case.heads[1], case.head_dim)

    def cache() -> PackedCache:
        codes = torch.randint(0, 256, (*shape[:3], shape[3] // 2), dtype=torch.uint8, device=device)
        # Their middle is about zero: what all dimensions have in common would be one of them, turned back.
        scales = 0.1 + 0.2 * torch.rand((*shape[:3], 4), device=device)
        minimums = poisoned_outside(0.3 * torch.randn(scales.shape, device=device) - 7.5 * scales, case, batch)
        scales = poisoned_outside(scales, case, batch)
        return PackedCache(codes, scales.half(), minimums.half())

    caches = cache(), cache()
    wide = [unpack_heads(x.codes, x.scales, x.minimums, torch.float64).nan_to_num(0) for x in caches]
    check(case, batch, caches, (wide[0], wide[1]), dtype)


@pytest.mark.parametrize("kept", [torch.float16, torch.float32, torch.float8_e4m3fn])
def test_a_cache_of_another_type_than_the_queries(kept: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
    if kept == torch.float8_e4m3fn and not has_fp8(device):
        pytest.skip("this card has no float8_e4m3fn")
    case = Case(MIXED, heads=(2, 1))
    batch = build(case, device)
    k, v = plain(case, batch, dtype)
    caches = k.to(kept), v.to(kept)
    check(case, batch, caches, (widened(caches[0]), widened(caches[1])), dtype)


def test_heads_of_a_fused_product(device: torch.device, dtype: torch.dtype) -> None:
    case = Case(MIXED)
    batch = build(case, device)
    caches = plain(case, batch, dtype)
    fused = torch.full((batch.num_tokens, 7, 64), torch.nan, device=device, dtype=dtype)
    fused[:, 1:5] = torch.randn(batch.num_tokens, 4, 64, device=device).to(dtype)
    assert torch.equal(
        paged_attention(fused[:, 1:5], *caches, batch, 0.1),
        paged_attention(fused[:, 1:5].contiguous(), *caches, batch, 0.1),
    )


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    batch = build(Case([(3, 3)]), device)
    q, cache = torch.ones(3, 4, 64, device=device), torch.ones(2, 16, 2, 64, device=device)
    for wrong in (q[:2], q[:, :3], q[..., :32]):
        with pytest.raises(ValueError, match=r"^q"):
            paged_attention(wrong, cache, cache, batch, 1.0)
    with pytest.raises(ValueError, match="q is float64"):
        paged_attention(q.double(), cache, cache, batch, 1.0)
    with pytest.raises(ValueError, match="k_cache has blocks of 8"):
        paged_attention(q, cache[:, :8].contiguous(), cache[:, :8].contiguous(), batch, 1.0)
    with pytest.raises(ValueError, match="k_cache has the strides"):
        paged_attention(q, cache[:, :8], cache[:, :8], batch, 1.0)
    wide = torch.ones(2, 16, 1, 512, device=device)
    with pytest.raises(ValueError, match="heads of 512"):
        paged_attention(torch.ones(3, 1, 512, device=device), wide, wide, batch, 1.0)
    with pytest.raises(ValueError, match="q has 65 heads of 128 to each of k_cache; at most 64"):
        paged_attention(torch.ones(3, 65, 128, device=device), wide[..., :128], wide[..., :128], batch, 1.0)
    with pytest.raises(ValueError, match="v_cache is plain"):
        paged_attention(q, QuantizedCache(cache.to(torch.int8), torch.ones(2, 16, 2, device=device)), cache, batch, 1.0)
    bad = QuantizedCache(cache.to(torch.int8), torch.ones(2, 16, 1, device=device))
    with pytest.raises(ValueError, match="scales"):
        paged_attention(q, bad, bad, batch, 1.0)
    with pytest.raises(ValueError, match="sinks"):
        paged_attention(q, cache, cache, batch, 1.0, sinks=torch.ones(3, device=device))
