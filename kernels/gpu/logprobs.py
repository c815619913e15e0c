"""Log-probabilities of given tokens: a softmax's sum in one pass over the logits, in pieces where rows are few."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import check
from .peaks import check_logits, divide, greedy
from .tiles import power_of_two

TILE = 2048


@triton.jit
def _piece_sum(
    logits_ptr, largest_ptr, sums_ptr, vocab, row_stride, split_size, num_splits, BLOCK: tl.constexpr
):  # fmt: skip
    """Of one piece of a row: its largest logit, and the sum of exp(logit - largest)."""
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    begin = split * split_size
    end = tl.minimum(begin + split_size, vocab)
    # A largest and a sum for each thread's own columns; they meet at the end.
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(begin, end, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + row * row_stride + column, mask=column < end, other=float("-inf")).to(tl.float32)
        new = tl.maximum(largest, tl.where(x != x, largest, x))
        base = tl.where(new > float("-inf"), new, 0.0)  # minus infinity less itself would be no number
        total = total * tl.exp(largest - base) + tl.exp(x - base)
        largest = new
    peak = tl.max(largest, 0)
    base = tl.where(peak > float("-inf"), peak, 0.0)
    place = row * num_splits + split
    tl.store(largest_ptr + place, peak)
    tl.store(sums_ptr + place, tl.sum(total * tl.exp(largest - base), 0))


@triton.jit
def _token_logprob(
    logits_ptr, tokens_ptr, largest_ptr, sums_ptr, out_ptr, log_sum_ptr, row_stride, num_splits, SPLITS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, SPLITS)
    mask = piece < num_splits
    largest = tl.load(largest_ptr + row * num_splits + piece, mask=mask, other=float("-inf"))
    sums = tl.load(sums_ptr + row * num_splits + piece, mask=mask, other=0.0)
    peak = tl.max(largest, 0)
    base = tl.where(peak > float("-inf"), peak, 0.0)
    log_sum = tl.log(tl.sum(sums * tl.exp(largest - base), 0)) + base
    own = tl.load(logits_ptr + row * row_stride + tl.load(tokens_ptr + row)).to(tl.float32)
    tl.store(out_ptr + row, own - log_sum)
    tl.store(log_sum_ptr + row, log_sum)


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `ops.token_logprobs`. The likeliest tokens come from torch's own selection."""
    check_logits(logits)
    check("tokens", tokens, dtypes=(torch.int64,), ndim=1, like=logits)
    if len(tokens) != len(logits):
        raise ValueError(f"tokens has {len(tokens)} values for {len(logits)} rows")
    if num_top < 0:
        raise ValueError(f"num_top is {num_top}")
    num_rows, vocab = logits.shape
    rows = divide(logits, TILE)
    pieces = torch.empty(2, num_rows, rows.num_splits, dtype=torch.float32, device=logits.device)
    own, log_sum = torch.empty(2, num_rows, dtype=torch.float32, device=logits.device)
    if num_rows:
        _piece_sum[(num_rows, rows.num_splits)](
            logits, pieces[0], pieces[1], vocab, logits.stride(0), rows.split_size, rows.num_splits,
            BLOCK=min(TILE, power_of_two(rows.split_size)), num_warps=4,
        )  # fmt: skip
        _token_logprob[(num_rows,)](
            logits, tokens, pieces[0], pieces[1], own, log_sum, logits.stride(0), rows.num_splits,
            SPLITS=power_of_two(rows.num_splits), num_warps=1,
        )  # fmt: skip
    if num_top == 1:
        ids = greedy(logits).clamp(min=0)[:, None]  # the first of equals, which topk does not promise
    else:
        ids = logits.topk(min(num_top, vocab)).indices.sort(-1).values
    top, order = logits.gather(1, ids).float().sort(dim=-1, descending=True, stable=True)
    return own, ids.gather(1, order), top - log_sum[:, None]
