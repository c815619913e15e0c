"""The largest logit of each row and where it first stands, for greedy decoding and as the first step of a draw.

A row that a few programs share is done in two launches: a peak for each piece, then the highest of these.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import check
from .tiles import FLOATS, num_splits, power_of_two, split_size

TILE = 2048
NONE = tl.constexpr(0x7FFFFFFF)  # no place yet


@dataclass(frozen=True)
class Rows:
    """Each row is `num_splits` pieces of `split_size` columns (the last may be smaller)."""

    num_splits: int
    split_size: int


@dataclass(frozen=True)
class Peaks:
    """Of each piece: the largest logit, infinity where there is a NaN, and its column: both [num_rows, num_splits]."""

    largest: torch.Tensor
    column: torch.Tensor


@triton.jit
def _piece_peak(
    logits_ptr, largest_ptr, column_ptr, vocab, row_stride, split_size, num_splits, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    begin = split * split_size
    end = tl.minimum(begin + split_size, vocab)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.full([BLOCK], NONE, tl.int32)
    for first in range(begin, end, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + row * row_stride + column, mask=column < end, other=float("-inf")).to(tl.float32)
        x = tl.where(x != x, float("inf"), x)
        where = tl.where(x > best, column, where)
        best = tl.maximum(x, best)
    largest = tl.max(best, 0)
    place = row * num_splits + split
    tl.store(largest_ptr + place, largest)
    tl.store(column_ptr + place, tl.min(tl.where(best == largest, where, NONE), 0))


@triton.jit
def peak_of(largest_ptr, row, num_splits, SPLITS: tl.constexpr):
    """The largest logit of a row, and whether it is finite."""
    piece = tl.arange(0, SPLITS)
    values = tl.load(largest_ptr + row * num_splits + piece, mask=piece < num_splits, other=float("-inf"))
    largest = tl.max(values, 0)
    return largest, (largest > float("-inf")) & (largest < float("inf"))


@triton.jit
def _highest(largest_ptr, column_ptr, tokens_ptr, num_splits, SPLITS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    piece = tl.arange(0, SPLITS)
    mask = piece < num_splits
    values = tl.load(largest_ptr + row * num_splits + piece, mask=mask, other=float("-inf"))
    columns = tl.load(column_ptr + row * num_splits + piece, mask=mask, other=NONE)
    largest = tl.max(values, 0)
    is_finite = (largest > float("-inf")) & (largest < float("inf"))
    token = tl.min(tl.where(values == largest, columns, NONE), 0)
    tl.store(tokens_ptr + row, tl.where(is_finite, token, -1).to(tl.int64))


def check_logits(logits: torch.Tensor) -> None:
    check("logits", logits, dtypes=FLOATS, ndim=2, like=logits)
    if not logits.shape[1]:
        raise ValueError("logits have no columns")


def divide(logits: torch.Tensor, tile: int) -> Rows:
    """How many programs share each row of logits, in whole tiles."""
    splits = num_splits(logits.shape[0], logits.shape[1], tile, logits.device)
    size = split_size(logits.shape[1], splits, tile)
    return Rows(-(-logits.shape[1] // size), size)


def row_peaks(logits: torch.Tensor, rows: Rows) -> Peaks:
    shape = (len(logits), rows.num_splits)
    largest = torch.empty(shape, dtype=torch.float32, device=logits.device)
    column = torch.empty(shape, dtype=torch.int32, device=logits.device)
    if len(logits):
        _piece_peak[shape](
            logits, largest, column, logits.shape[1], logits.stride(0), rows.split_size, rows.num_splits,
            BLOCK=min(TILE, power_of_two(rows.split_size)), num_warps=4,
        )  # fmt: skip
    return Peaks(largest, column)


def tokens_of_peaks(peaks: Peaks, tokens: torch.Tensor) -> None:
    """tokens int64 [num_rows]: the column of the largest logit, -1 where that is not finite."""
    num_rows, splits = peaks.largest.shape
    if num_rows:
        _highest[(num_rows,)](
            peaks.largest, peaks.column, tokens, splits, SPLITS=power_of_two(splits), num_warps=1
        )  # fmt: skip


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """See `ops.greedy`."""
    check_logits(logits)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    tokens_of_peaks(row_peaks(logits, divide(logits, TILE)), tokens)
    return tokens
