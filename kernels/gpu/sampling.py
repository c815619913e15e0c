"""Drawing a token for each row on a card, without sorting a vocabulary.

Four launches, and no more passes over the logits than three: (1) each row's largest logit; (2) how many tokens weigh
at least each of a few pivots, and what they weigh together; (3) the tokens above the highest pivot that is certain to
hold all that the cuts leave are copied out, in vocabulary order; (4) the cuts are found among these by bisection, and
the draw by a cumulative sum. Weights are summed as whole multiples of 2**-42: such sums do not depend on their order,
so a row's token does not depend on how rows were divided among programs, and a run repeats.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import check
from .peaks import check_logits, divide, peak_of, row_peaks, tokens_of_peaks
from .tiles import power_of_two

TILE = 1024
MAX_VOCAB = 1 << 20  # so that no sum overflows
UNIT = tl.constexpr(float(1 << 42))
# The weight of the likeliest token, 1, as an integer of the same order.
ONE = tl.constexpr(0x3F800000)
NUM_PIVOTS = tl.constexpr(8)
# Rows whose candidates are in memory at once, eight bytes a token each.
ROWS_AT_ONCE = 128


@triton.jit
def _weights(logits_row, column, end, largest, temperature):
    """exp((logit - largest) / temperature) in float32; 0 beyond `end`."""
    x = tl.load(logits_row + column, mask=column < end, other=float("-inf")).to(tl.float32)
    return tl.exp((x - largest) / temperature)


@triton.jit
def _fixed(weight):
    return (weight * UNIT).to(tl.int64)


@triton.jit
def _pivot(j):
    """2**-1, -3, -6, -10, -15, -21, -28, and last the least weight that counts."""
    exponent = tl.where(j < NUM_PIVOTS - 1, (j + 1) * (j + 2) // 2, 42)
    return ((127 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _goal(share, total):
    """The least whole number that is no less than share * total, and at least one."""
    exact = share * total.to(tl.float64)
    floor = exact.to(tl.int64)
    return tl.maximum(floor + (floor.to(tl.float64) < exact).to(tl.int64), 1)


@triton.jit
def _weigh_pivots(
    logits_ptr, peaks_ptr, temperature_ptr, counts_ptr, sums_ptr, vocab, row_stride, split_size, num_splits,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one piece of a row: counts, sums [num_rows, num_splits, NUM_PIVOTS] of what weighs at least each pivot."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    largest, is_open, temperature = _open_row(peaks_ptr, temperature_ptr, row, num_splits, SPLITS)
    begin = split * split_size
    end = tl.where(is_open, tl.minimum(begin + split_size, vocab), begin)
    j = tl.arange(0, NUM_PIVOTS)
    pivots = _pivot(j)[:, None]
    counts = tl.zeros([NUM_PIVOTS, BLOCK], tl.int32)
    sums = tl.zeros([NUM_PIVOTS, BLOCK], tl.int64)
    for first in range(begin, end, BLOCK):
        weight = _weights(logits_ptr + row * row_stride, first + tl.arange(0, BLOCK), end, largest, temperature)
        above = weight[None, :] >= pivots
        counts += above.to(tl.int32)
        sums += tl.where(above, _fixed(weight)[None, :], 0)
    place = (row * num_splits + split) * NUM_PIVOTS + j
    tl.store(counts_ptr + place, tl.sum(counts, 1))
    tl.store(sums_ptr + place, tl.sum(sums, 1))


@triton.jit
def _open_row(peaks_ptr, temperature_ptr, row, num_splits, SPLITS: tl.constexpr):
    """The largest logit, whether there is anything to draw from, and the temperature."""
    temperature = tl.load(temperature_ptr + row).to(tl.float32)
    largest, is_finite = peak_of(peaks_ptr, row, num_splits, SPLITS)
    # What is smaller than that would overflow a quotient and change nothing.
    return tl.where(is_finite, largest, 0.0), is_finite & (temperature != 0), tl.maximum(temperature, 1e-30)


@triton.jit
def _copy_candidates(
    logits_ptr, peaks_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, counts_ptr, sums_ptr,
    weights_ptr, ids_ptr, num_candidates_ptr, totals_ptr, vocab, row_stride, split_size, num_splits,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes what one piece of a row adds to its candidates, to weights and ids [num_rows, vocab]."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    largest, is_open, temperature = _open_row(peaks_ptr, temperature_ptr, row, num_splits, SPLITS)
    piece = tl.arange(0, SPLITS)[:, None]
    j = tl.arange(0, NUM_PIVOTS)
    place = (row * num_splits + piece) * NUM_PIVOTS + j[None, :]
    all_counts = tl.load(counts_ptr + place, mask=piece < num_splits, other=0)
    counts = tl.sum(all_counts, 0)
    sums = tl.sum(tl.load(sums_ptr + place, mask=piece < num_splits, other=0), 0)
    # A pivot will do if no cut can lie below it. The first cut that there is decides: later ones see what it leaves.
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row).to(tl.float64)
    min_p = tl.load(min_p_ptr + row).to(tl.float32)
    enough_for_p = sums >= _goal(top_p, tl.max(sums, 0))
    enough = tl.where(top_k > 0, counts >= top_k, tl.where(top_p < 1, enough_for_p, _pivot(j) <= min_p))
    chosen = tl.min(tl.where(enough, j, NUM_PIVOTS - 1), 0)
    is_chosen = (j == chosen)[None, :]
    offset = tl.sum(tl.sum(tl.where(is_chosen & (piece < split), all_counts, 0), 1), 0)
    if split == 0:
        tl.store(num_candidates_ptr + row, tl.where(is_open, tl.sum(tl.where(j == chosen, counts, 0), 0), 0))
        tl.store(totals_ptr + row, tl.max(sums, 0))
    begin = split * split_size
    end = tl.where(is_open, tl.minimum(begin + split_size, vocab), begin)
    for first in range(begin, end, BLOCK):
        column = first + tl.arange(0, BLOCK)
        weight = _weights(logits_ptr + row * row_stride, column, end, largest, temperature)
        above = weight >= _pivot(chosen)
        target = row * vocab + offset + tl.cumsum(above.to(tl.int32), 0) - 1
        tl.store(weights_ptr + target, weight, mask=above)
        tl.store(ids_ptr + target, column, mask=above)
        offset += tl.sum(above.to(tl.int32), 0)


@triton.jit
def _cut(weights_row, num, goal, BY_COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The largest weight, as an integer, such that those no smaller are `goal` many, or weigh that much together."""
    low = tl.zeros([], tl.int32)
    high = tl.zeros([], tl.int32) + ONE
    while low < high:
        middle = low + (high - low + 1) // 2
        reached = tl.zeros([], tl.int64)
        least = tl.zeros([], tl.int32) + ONE
        most = tl.zeros([], tl.int32)
        for first in range(0, num, BLOCK):
            place = first + tl.arange(0, BLOCK)
            weight = tl.load(weights_row + place, mask=place < num, other=0.0)
            order = weight.to(tl.int32, bitcast=True)
            above = order >= middle
            if BY_COUNT:
                reached += tl.sum(above.to(tl.int64), 0)
            else:
                reached += tl.sum(tl.where(above, _fixed(weight), 0), 0)
            least = tl.minimum(least, tl.min(tl.where(above, order, ONE), 0))
            most = tl.maximum(most, tl.max(tl.where(above, 0, order), 0))
        # Bounds jump to weights that are there, so a few passes do.
        low = tl.where(reached >= goal, least, low)
        high = tl.where(reached >= goal, high, most)
    return low


@triton.jit
def _kept(weights_row, place, num, cut, min_p):
    """Weights as whole numbers, 0 where a cut took the token."""
    weight = tl.load(weights_row + place, mask=place < num, other=0.0)
    stays = (weight.to(tl.int32, bitcast=True) >= cut) & (weight >= min_p)
    return tl.where(stays, _fixed(weight), 0)


@triton.jit
def _kept_sum(weights_row, num, cut, min_p, BLOCK: tl.constexpr):
    total = tl.zeros([], tl.int64)
    for first in range(0, num, BLOCK):
        total += tl.sum(_kept(weights_row, first + tl.arange(0, BLOCK), num, cut, min_p), 0)
    return total


@triton.jit
def _draw(
    tokens_ptr, weights_ptr, ids_ptr, num_candidates_ptr, totals_ptr, top_k_ptr, top_p_ptr, min_p_ptr, uniform_ptr,
    vocab,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row's token from its candidates; where there are none, tokens holds the answer already."""
    row = tl.program_id(0).to(tl.int64)
    num = tl.load(num_candidates_ptr + row)
    weights_row = weights_ptr + row * vocab
    if num > 0:
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row).to(tl.float64)
        min_p = tl.minimum(tl.load(min_p_ptr + row).to(tl.float32), 1.0)
        cut = tl.zeros([], tl.int32)
        total = tl.load(totals_ptr + row)  # of the whole row, and not only of the candidates
        if top_k > 0:
            cut = _cut(weights_row, num, tl.minimum(top_k, num.to(tl.int64)), True, BLOCK)
            total = _kept_sum(weights_row, num, cut, 0.0, BLOCK)
        if top_p < 1:
            goal = _goal(top_p, total)
            cut = tl.maximum(cut, _cut(weights_row, num, goal, False, BLOCK))
        total = _kept_sum(weights_row, num, cut, min_p, BLOCK)
        target = (tl.load(uniform_ptr + row).to(tl.float64) * total.to(tl.float64)).to(tl.int64)
        target = tl.minimum(target, total - 1)
        before = tl.zeros([], tl.int64)
        chosen = tl.zeros([], tl.int32)
        for first in range(0, num, BLOCK):
            fixed = _kept(weights_row, first + tl.arange(0, BLOCK), num, cut, min_p)
            after = before + tl.sum(fixed, 0)
            if (before <= target) & (target < after):
                chosen = first + tl.sum((before + tl.cumsum(fixed, 0) <= target).to(tl.int32), 0)
            before = after
        tl.store(tokens_ptr + row, tl.load(ids_ptr + row * vocab + chosen).to(tl.int64))


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """See `ops.sample`. Vocabularies of up to 2**20 tokens."""
    check_logits(logits)
    if logits.shape[1] > MAX_VOCAB:
        raise ValueError(f"logits have {logits.shape[1]} columns; this kernel takes at most {MAX_VOCAB}")
    columns = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "uniform": uniform, "top_k": top_k}
    for name, column in columns.items():
        floats = (torch.float32, torch.float64)
        check(name, column, dtypes=(torch.int64,) if name == "top_k" else floats, ndim=1, like=logits)
        if len(column) != len(logits):
            raise ValueError(f"{name} has {len(column)} values for {len(logits)} rows")
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for first in range(0, len(logits), ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        _sample(
            logits[part], temperature[part], top_k[part], top_p[part], min_p[part], uniform[part], tokens[part]
        )  # fmt: skip
    return tokens


def _sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
    tokens: torch.Tensor,
) -> None:
    num_rows, vocab = logits.shape
    rows = divide(logits, TILE)
    peaks = row_peaks(logits, rows)
    tokens_of_peaks(peaks, tokens)

    def new(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    counts = new(num_rows, rows.num_splits, NUM_PIVOTS.value, dtype=torch.int32)
    sums = new(num_rows, rows.num_splits, NUM_PIVOTS.value, dtype=torch.int64)
    weights, ids = new(num_rows, vocab, dtype=torch.float32), new(num_rows, vocab, dtype=torch.int32)
    num_candidates, totals = new(num_rows, dtype=torch.int32), new(num_rows, dtype=torch.int64)
    grid = (num_rows, rows.num_splits)
    width = power_of_two(rows.num_splits)
    division = (vocab, logits.stride(0), rows.split_size, rows.num_splits)
    _weigh_pivots[grid](
        logits, peaks.largest, temperature, counts, sums, *division, SPLITS=width, BLOCK=TILE, num_warps=8
    )
    _copy_candidates[grid](
        logits, peaks.largest, temperature, top_k, top_p, min_p, counts, sums, weights, ids, num_candidates, totals,
        *division,
        SPLITS=width, BLOCK=TILE, num_warps=4,
    )  # fmt: skip
    _draw[(num_rows,)](
        tokens, weights, ids, num_candidates, totals, top_k, top_p, min_p, uniform, vocab, BLOCK=2 * TILE, num_warps=8
    )  # fmt: skip
