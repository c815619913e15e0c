"""What a program of paged attention works on: a tile of one sequence's queries, and the keys of its share of a split.

The query heads that share a key/value head stand under one another: row r of a tile is query r // group, head
r % group of the group, so keys and values are read once for all of them.

A sequence's queries are cut into tiles of QUERIES. Nobody counts them on the host: with one tile to spare for each
sequence, sequence s has its tiles from query_starts[s] // QUERIES + s on, which a program finds by bisection.

A tile's keys, those that any of its queries sees, are cut into splits of whole steps of BLOCK keys; how many splits a
tile has follows from its own length, up to the number that was launched.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import triton
import triton.language as tl

# Keys below which a tile's work is not divided further: less would not pay for the pass that joins the parts.
MIN_KEYS = tl.constexpr(256)
# A window that hides nothing.
NO_WINDOW = 1 << 30


@triton.jit
def sequence_of_tile(query_starts_ptr, num_seqs, tile, QUERIES: tl.constexpr):
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(query_starts_ptr + middle).to(tl.int32) // QUERIES + middle
        low = tl.where(begins <= tile, middle, low)
        high = tl.where(begins <= tile, high, middle)
    first_tile = tl.load(query_starts_ptr + low).to(tl.int32) // QUERIES + low
    return low, (tile - first_tile) * QUERIES


@triton.jit
def keys_of_tile(first_position, last_position, window, BLOCK: tl.constexpr):
    """[begin, end) of the keys that queries at these positions see; `begin` at a whole step."""
    return tl.maximum(0, first_position - window + 1) // BLOCK * BLOCK, last_position + 1


@triton.jit
def splits_of_tile(begin, end, num_splits, BLOCK: tl.constexpr):
    """How many splits these keys have, and how many keys each but the last."""
    num_steps = tl.cdiv(tl.maximum(end - begin, 0), BLOCK)
    wanted = tl.maximum(1, tl.minimum(num_splits, tl.cdiv(num_steps * BLOCK, MIN_KEYS)))
    steps_each = tl.maximum(1, tl.cdiv(num_steps, wanted))
    return tl.maximum(1, tl.cdiv(num_steps, steps_each)), steps_each * BLOCK
