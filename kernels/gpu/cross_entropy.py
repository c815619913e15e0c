"""The losses of a chunk of logits and, in their place, the gradient by them: two passes over each row."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import cross_entropy
from ..cross_entropy import Settings
from .launch import check
from .tiles import FLOATS, power_of_two

TILE = 4096


@triton.jit
def _tanh(x):
    """From an exponential that never overflows."""
    small = tl.exp(-2.0 * tl.abs(x))
    size = (1.0 - small) / (1.0 + small)
    return tl.where(x < 0, -size, size)


@triton.jit
def _capped(x, softcap, CAPPED: tl.constexpr):
    if CAPPED:
        x = softcap * _tanh(x / softcap)
    return x


@triton.jit
def _row_loss(
    logits_ptr, targets_ptr, losses_ptr, vocab, row_stride, ignore_index, softcap, smoothing,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, WITH_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_row = logits_ptr + row * row_stride
    target = tl.load(targets_ptr + row)
    counted = target != ignore_index
    in_range = (target >= 0) & (target < vocab)
    # Read before the loops: their sums are where all threads meet, and only after them is anything overwritten.
    own = tl.load(logits_row + tl.where(in_range, target, 0)).to(tl.float32)
    own = _capped(own, softcap, CAPPED)
    # An ignored row's logits matter to nobody; its gradient is zero.
    end = tl.where(counted, vocab, 0)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    plain_sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, end, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = column < end
        x = _capped(tl.load(logits_row + column, mask=mask, other=0.0).to(tl.float32), softcap, CAPPED)
        if SMOOTHED:
            plain_sum += tl.where(mask, x, 0.0)
        new = tl.maximum(largest, tl.where(mask, x, float("-inf")))
        base = tl.where(new > float("-inf"), new, 0.0)  # minus infinity less itself would be no number
        total = total * tl.exp(largest - base) + tl.where(mask, tl.exp(tl.where(mask, x, base) - base), 0.0)
        largest = new
    peak = tl.max(largest, 0)
    peak = tl.where(peak > float("-inf"), peak, 0.0)
    sum_of_all = tl.sum(total * tl.exp(largest - peak), 0)
    log_sum = tl.log(tl.where(counted, sum_of_all, 1.0)) + peak
    loss = log_sum - (1.0 - smoothing) * own
    if SMOOTHED:
        loss -= smoothing * tl.sum(plain_sum, 0) / vocab
    loss = tl.where(in_range, loss, float("nan"))
    tl.store(losses_ptr + row, tl.where(counted, loss, 0.0))
    if WITH_GRADIENT:
        for first in range(0, vocab, BLOCK):
            column = first + tl.arange(0, BLOCK)
            mask = column < vocab
            x = tl.load(logits_row + column, mask=column < end, other=0.0).to(tl.float32)
            x = _capped(x, softcap, CAPPED)
            gradient = tl.exp(x - log_sum) - tl.where(column == target, 1.0 - smoothing, 0.0)
            if SMOOTHED:
                gradient -= smoothing / vocab
            if CAPPED:
                gradient *= 1.0 - (x / softcap) * (x / softcap)
            gradient = tl.where(counted, gradient, 0.0)
            tl.store(logits_row + column, gradient.to(logits_ptr.dtype.element_ty), mask=mask)


def row_losses(logits: torch.Tensor, targets: torch.Tensor, settings: Settings, with_gradient: bool) -> torch.Tensor:
    """See `cross_entropy.RowLosses`. A target that is neither ignored nor a token gives NaN."""
    check("logits", logits, dtypes=FLOATS, ndim=2, like=logits)
    check("targets", targets, dtypes=(torch.int64,), ndim=1, like=logits)
    if len(targets) != len(logits):
        raise ValueError(f"targets has {len(targets)} values for {len(logits)} rows")
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        block = min(TILE, power_of_two(logits.shape[1]))
        _row_loss[(len(logits),)](
            logits, targets, losses, logits.shape[1], logits.stride(0), settings.ignore_index, settings.softcap,
            settings.label_smoothing, CAPPED=settings.softcap > 0, SMOOTHED=settings.label_smoothing > 0,
            WITH_GRADIENT=with_gradient, BLOCK=block, num_warps=max(1, block // 512),
        )  # fmt: skip
    return losses


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    ignore_index: int = -100,
    softcap: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops_training.linear_cross_entropy`."""
    check("hidden", hidden, dtypes=FLOATS, ndim=2, like=hidden)
    check("weight", weight, dtypes=FLOATS, ndim=2, like=hidden)
    settings = Settings(ignore_index, softcap, label_smoothing)
    return cross_entropy.linear_cross_entropy(hidden, weight, targets, settings, row_losses)
