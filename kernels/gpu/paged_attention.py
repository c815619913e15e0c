"""Attention over paged caches of any format: few queries with the keys divided among programs, many in wide tiles.

Two launches of one tile's arithmetic (`paged_steps.attend_tile`) and a pass that joins what splits found. A sequence
with few new tokens (decoding, a speculated few) is one program's for each key/value head and split, one with many is
cut into tiles; each launch leaves the other's sequences alone.

Nothing is read on the host and nothing waits: what is launched follows from shapes (number of tokens, of sequences,
width of the block tables), which is what a CUDA graph holds fixed, and lengths are looked at in the kernels. Where the
batch still knows its lengths (`RaggedBatch.host`), a launch that would find nothing to do is left out.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import triton
import triton.language as tl

from ..packed_heads import turn_back
from ..quantized import Cache
from ..ragged import RaggedBatch
from . import split
from .cache_formats import INT4, CacheArguments, cache_arguments
from .launch import check
from .paged_steps import attend_tile, join_tile
from .paged_tiles import MIN_KEYS, NO_WINDOW, sequence_of_tile
from .tiles import FLOATS, power_of_two

MIN_HEAD_DIM = 16
MAX_HEAD_DIM = 256
# Rows (queries times query heads to a key/value head) up to which a sequence's queries count as few.
MAX_FEW_ROWS = 64
MIN_ROWS = 16  # the least that a tensor core multiplies
# Query heads to a key/value head, which all stand in one tile; the widest known is Falcon-7B's, 71 of 64 dimensions.
# Of wider heads half as many fit.
MAX_GROUP = 128
MAX_SPLITS = 64


@dataclass(frozen=True)
class Tile:
    """Of a launch: rows of a tile, keys of a step, warps, stages of loads under way."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


@triton.jit
def _attend_few(
    q_ptr, out_ptr, part_ptr, lse_ptr, sinks_ptr, k_ptr, k_scale_ptr, k_min_ptr, v_ptr, v_scale_ptr, v_min_ptr,
    tables_ptr, seq_lens_ptr, query_starts_ptr, num_parts, num_kv_heads, few,
    scale, softcap, window, q_token_stride, q_head_stride, k_slot_stride, k_head_stride, v_slot_stride, v_head_stride,
    scale_slot_stride, table_stride, num_splits,
    FORMAT: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, CAPPED: tl.constexpr,
    HAS_SINKS: tl.constexpr, EXACT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    COMPACT: tl.constexpr,
):  # fmt: skip
    """All queries of one sequence, where they are `few` or fewer: programs are sequences times heads, and splits."""
    QUERIES: tl.constexpr = ROWS // GROUP
    program = tl.program_id(0)
    sequence = program // num_kv_heads
    start = tl.load(query_starts_ptr + sequence)
    num_queries = (tl.load(query_starts_ptr + sequence + 1) - start).to(tl.int32)
    if num_queries <= few:
        part_start = sequence * few if COMPACT else start
        for first in range(0, num_queries, QUERIES):
            attend_tile(
                q_ptr, out_ptr, part_ptr, lse_ptr, sinks_ptr, k_ptr, k_scale_ptr, k_min_ptr,
                v_ptr, v_scale_ptr, v_min_ptr, tables_ptr + sequence.to(tl.int64) * table_stride,
                start, part_start, num_queries, first, tl.load(seq_lens_ptr + sequence).to(tl.int32),
                program % num_kv_heads, num_parts, num_kv_heads, scale, softcap, window, q_token_stride, q_head_stride,
                k_slot_stride, k_head_stride, v_slot_stride, v_head_stride, scale_slot_stride, num_splits,
                FORMAT, BLOCK_SIZE, HEAD_DIM, GROUP, CAPPED, HAS_SINKS, EXACT, WIDTH, ROWS, BLOCK,
            )  # fmt: skip


@triton.jit
def _attend_many(
    q_ptr, out_ptr, part_ptr, lse_ptr, sinks_ptr, k_ptr, k_scale_ptr, k_min_ptr, v_ptr, v_scale_ptr, v_min_ptr,
    tables_ptr, seq_lens_ptr, query_starts_ptr, num_parts, num_kv_heads, few,
    scale, softcap, window, q_token_stride, q_head_stride, k_slot_stride, k_head_stride, v_slot_stride, v_head_stride,
    scale_slot_stride, table_stride, num_splits, num_seqs, num_tiles,
    FORMAT: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, CAPPED: tl.constexpr,
    HAS_SINKS: tl.constexpr, EXACT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of a sequence with more than `few` queries. The last tiles, which see the most keys, begin first."""
    QUERIES: tl.constexpr = ROWS // GROUP
    program = tl.program_id(0)
    tile = num_tiles - 1 - program // num_kv_heads
    sequence, first = sequence_of_tile(query_starts_ptr, num_seqs, tile, QUERIES)
    start = tl.load(query_starts_ptr + sequence)
    num_queries = (tl.load(query_starts_ptr + sequence + 1) - start).to(tl.int32)
    if (num_queries > few) & (first < num_queries):
        attend_tile(
            q_ptr, out_ptr, part_ptr, lse_ptr, sinks_ptr, k_ptr, k_scale_ptr, k_min_ptr,
            v_ptr, v_scale_ptr, v_min_ptr, tables_ptr + sequence.to(tl.int64) * table_stride,
            start, start, num_queries, first, tl.load(seq_lens_ptr + sequence).to(tl.int32),
            program % num_kv_heads, num_parts, num_kv_heads, scale, softcap, window, q_token_stride, q_head_stride,
            k_slot_stride, k_head_stride, v_slot_stride, v_head_stride, scale_slot_stride, num_splits,
            FORMAT, BLOCK_SIZE, HEAD_DIM, GROUP, CAPPED, HAS_SINKS, EXACT, WIDTH, ROWS, BLOCK,
        )  # fmt: skip


@triton.jit
def _join_few(
    out_ptr, part_ptr, lse_ptr, sinks_ptr, seq_lens_ptr, query_starts_ptr, num_parts, num_kv_heads, few, window,
    num_splits, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, HAS_SINKS: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, COMPACT: tl.constexpr,
):  # fmt: skip
    QUERIES: tl.constexpr = ROWS // GROUP
    program = tl.program_id(0)
    sequence = program // num_kv_heads
    start = tl.load(query_starts_ptr + sequence)
    num_queries = (tl.load(query_starts_ptr + sequence + 1) - start).to(tl.int32)
    if num_queries <= few:
        part_start = sequence * few if COMPACT else start
        for first in range(0, num_queries, QUERIES):
            join_tile(
                out_ptr, part_ptr, lse_ptr, sinks_ptr, start, part_start, num_queries, first,
                tl.load(seq_lens_ptr + sequence).to(tl.int32), program % num_kv_heads, num_parts, num_kv_heads,
                window, num_splits, HEAD_DIM, GROUP, HAS_SINKS, WIDTH, ROWS, BLOCK,
            )  # fmt: skip


@triton.jit
def _join_many(
    out_ptr, part_ptr, lse_ptr, sinks_ptr, seq_lens_ptr, query_starts_ptr, num_parts, num_kv_heads, few, window,
    num_splits, num_seqs, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, HAS_SINKS: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    QUERIES: tl.constexpr = ROWS // GROUP
    program = tl.program_id(0)
    sequence, first = sequence_of_tile(query_starts_ptr, num_seqs, program // num_kv_heads, QUERIES)
    start = tl.load(query_starts_ptr + sequence)
    num_queries = (tl.load(query_starts_ptr + sequence + 1) - start).to(tl.int32)
    if (num_queries > few) & (first < num_queries):
        join_tile(
            out_ptr, part_ptr, lse_ptr, sinks_ptr, start, start, num_queries, first,
            tl.load(seq_lens_ptr + sequence).to(tl.int32), program % num_kv_heads, num_parts, num_kv_heads,
            window, num_splits, HEAD_DIM, GROUP, HAS_SINKS, WIDTH, ROWS, BLOCK,
        )  # fmt: skip


def paged_attention(
    q: torch.Tensor,
    k_cache: Cache,
    v_cache: Cache,
    batch: RaggedBatch,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `ops.paged_attention`. Heads of up to 256 dimensions; tokens and heads of q may have any strides.

    Computed in q's type with sums in float32; both caches are of one format. A query of a sequence of length zero
    (a row that pads a CUDA graph) gets zeros.
    """
    keys, values = _check(q, k_cache, v_cache, batch, sinks)
    is_turned = keys.format == INT4.value
    if is_turned:
        q = turn_back(q)
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[2]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not out.numel() or not batch.num_seqs:
        return out
    group = num_heads // num_kv_heads
    window = min(window, NO_WINDOW) or NO_WINDOW
    exact = q.dtype == torch.float32
    few_tile = _few_tile(batch, group, head_dim, keys.code_bytes, exact)
    many_tile = _many_tile(group, head_dim, exact)
    only_decodes = num_tokens <= batch.num_seqs  # then a sequence with more tokens is taken in pieces
    few = num_tokens if only_decodes else few_tile.rows // group
    table = batch.block_tables
    heads = (q.stride(0), q.stride(1))
    strides = (keys.slot_stride, keys.head_stride, values.slot_stride, values.head_stride, keys.scale_slot_stride)
    lengths = (batch.seq_lens, batch.query_starts)
    shared = {"HEAD_DIM": head_dim, "GROUP": group, "HAS_SINKS": sinks is not None}
    flags = {
        **shared, "FORMAT": keys.format, "BLOCK_SIZE": batch.block_size, "CAPPED": softcap > 0,
        "EXACT": exact,
        "WIDTH": power_of_two(head_dim // 2 if keys.format == INT4.value else head_dim),
    }  # fmt: skip
    some_few, some_many = _which(batch, few)
    for tile, wanted, many in ((few_tile, some_few, False), (many_tile, some_many and not only_decodes, True)):
        if not wanted:
            continue
        num_tiles = num_tokens // (tile.rows // group) + batch.num_seqs if many else batch.num_seqs
        splits = _num_splits(num_tiles * num_kv_heads, table.shape[1] * batch.block_size, window, many, q.device)
        # Rows in `parts`: those of all tokens, or `few` for each sequence where the most are another launch's.
        compact = not many and batch.num_seqs * few < num_tokens
        num_parts = batch.num_seqs * few if compact else num_tokens
        parts, lse = _parts(out, splits, num_parts)
        options = {"ROWS": tile.rows, "BLOCK": tile.keys} | ({} if many else {"COMPACT": compact})
        attend, join = (_attend_many, _join_many) if many else (_attend_few, _join_few)
        attend[(num_tiles * num_kv_heads, splits)](
            q, out, parts, lse, out if sinks is None else sinks, *keys.pointers, *values.pointers,
            table, *lengths, num_parts, num_kv_heads, few, scale, softcap, window, *heads, *strides,
            table.stride(0), splits, *((batch.num_seqs, num_tiles) if many else ()),
            **flags, **options, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
        if splits > 1:
            join[(num_tiles * num_kv_heads,)](
                out, parts, lse, out if sinks is None else sinks, *lengths, num_parts, num_kv_heads, few, window,
                splits, *((batch.num_seqs,) if many else ()), **shared, **options,
                WIDTH=power_of_two(head_dim), num_warps=4 if tile.rows <= MAX_FEW_ROWS else 8,
            )  # fmt: skip
    return turn_back(out) if is_turned else out


def _check(
    q: torch.Tensor, k_cache: Cache, v_cache: Cache, batch: RaggedBatch, sinks: torch.Tensor | None
) -> tuple[CacheArguments, CacheArguments]:
    check("q", q, dtypes=FLOATS, ndim=3, like=q)
    keys, values = cache_arguments("k_cache", k_cache, like=q), cache_arguments("v_cache", v_cache, like=q)
    if k_cache.shape != v_cache.shape or keys.format != values.format:
        raise ValueError(
            f"v_cache is {values.format_name} of {tuple(v_cache.shape)}, k_cache {keys.format_name} of "
            f"{tuple(k_cache.shape)}; both are of one shape and format"
        )
    num_tokens, num_heads, head_dim = q.shape
    _, block_size, num_kv_heads, cache_dim = k_cache.shape
    if num_tokens != batch.num_tokens:
        raise ValueError(f"q has {num_tokens} tokens, the batch {batch.num_tokens}")
    if head_dim != cache_dim or not num_kv_heads or num_heads % num_kv_heads:
        raise ValueError(f"q {tuple(q.shape)} does not go with k_cache of {tuple(k_cache.shape)}")
    if not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"q has heads of {head_dim}; this kernel takes {MIN_HEAD_DIM} to {MAX_HEAD_DIM}")
    most = MAX_GROUP if head_dim <= 64 else MAX_GROUP // 2
    if num_heads // num_kv_heads > most:
        raise ValueError(
            f"q has {num_heads // num_kv_heads} heads of {head_dim} to each of k_cache; at most {most} are taken"
        )
    if block_size != batch.block_size:
        raise ValueError(f"k_cache has blocks of {block_size}, the batch of {batch.block_size}")
    for name, x, ndim in (("block_tables", batch.block_tables, 2), ("seq_lens", batch.seq_lens, 1)):
        check(name, x, dtypes=(torch.int64, torch.int32), ndim=ndim, like=q)
    check("query_starts", batch.query_starts, dtypes=(torch.int64, torch.int32), ndim=1, like=q)
    if sinks is not None:
        check("sinks", sinks, dtypes=FLOATS, ndim=1, like=q)
        if sinks.shape[0] != num_heads:
            raise ValueError(f"sinks has the shape {tuple(sinks.shape)}; there are {num_heads} heads")
    return keys, values


def _few_tile(batch: RaggedBatch, group: int, head_dim: int, code_bytes: int, exact: bool) -> Tile:
    """Rows for the queries that a sequence has on average; a step is some 16 KiB of keys.

    `exact`: float32, whose products need thrice the registers.
    """
    each = -(-batch.num_tokens // batch.num_seqs)
    rows = max(MIN_ROWS, power_of_two(group), min(MAX_FEW_ROWS, power_of_two(each * group)))
    step = (8 << 10) // 4 if exact else (16 << 10) // code_bytes
    keys = max(16, min(128 if rows <= MAX_FEW_ROWS else 64, step // power_of_two(head_dim)))
    return Tile(rows, keys, num_warps=4 if rows <= MAX_FEW_ROWS else 8, num_stages=3)


def _many_tile(group: int, head_dim: int, exact: bool) -> Tile:
    """The largest whose sums stay in registers and whose keys fit 99 KiB, the least that cards since 8.0 have."""
    width = power_of_two(head_dim)
    if exact:
        rows = max(32 if width <= 128 else MIN_ROWS, power_of_two(group))
        return Tile(rows, 32 if width <= 128 else 16, num_warps=4 if rows <= MAX_FEW_ROWS else 8, num_stages=2)
    rows = max(128 if width <= 128 else 64, power_of_two(group))
    return Tile(rows, 64 if width <= 128 else 32, num_warps=8 if width <= 128 else 4, num_stages=2)


def _which(batch: RaggedBatch, few: int) -> tuple[bool, bool]:
    """Whether there may be sequences with few queries, and with more."""
    if batch.host is None:
        return True, True
    name = f"gpu.paged_attention.{few}"
    if name not in batch.plans:
        starts = batch.host[0]
        counts = [end - begin for begin, end in pairwise(starts)]
        batch.plans[name] = (any(0 < count <= few for count in counts), any(count > few for count in counts))
    return batch.plans[name]


def _num_splits(num_programs: int, max_keys: int, window: int, many: bool, device: torch.device) -> int:
    """So many that the launch fills the card, if all sequences were as long as the block tables are wide."""
    wanted = (2 if many else 4) * split.num_processors(device)
    keys = min(max_keys, window)
    return max(1, min(MAX_SPLITS, -(-wanted // num_programs), -(-keys // MIN_KEYS.value)))


def _parts(out: torch.Tensor, splits: int, num_parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What each split attends to in `num_parts` rows of heads, and the logarithm (base 2) of its weight.

    `out` stands for what is not needed. As there are no more splits than fill the card, this is some tens of MiB.
    """
    if splits == 1:
        return out, out
    parts = torch.empty(splits, num_parts, *out.shape[1:], dtype=torch.float32, device=out.device)
    return parts, torch.empty(splits, num_parts, out.shape[1], dtype=torch.float32, device=out.device)
