"""Changes to logits before a draw: what a grammar forbids, and penalties."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import check
from .peaks import check_logits

TILE = 2048
PLACES = 256


@triton.jit
def _forbid(logits_ptr, rows_ptr, bitmask_ptr, covered, row_stride, mask_stride, num_tiles, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    entry = program // num_tiles
    row = tl.load(rows_ptr + entry)
    column = (program % num_tiles) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(bitmask_ptr + entry * mask_stride + column // 32, mask=column < covered, other=-1)
    is_forbidden = ((words >> (column % 32).to(tl.int32)) & 1) == 0
    value = tl.full([BLOCK], float("-inf"), logits_ptr.dtype.element_ty)
    tl.store(logits_ptr + row * row_stride + column, value, mask=is_forbidden)


@triton.jit
def _penalize(
    logits_ptr, rows_ptr, tokens_ptr, repetition_ptr, offset_ptr, row_stride, num_places, BLOCK: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < num_places
    place = tl.load(rows_ptr + i, mask=mask, other=0) * row_stride + tl.load(tokens_ptr + i, mask=mask, other=0)
    value = tl.load(logits_ptr + place, mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(repetition_ptr + i, mask=mask, other=1.0).to(tl.float32)
    value = tl.where(value > 0, value / factor, value * factor)
    value += tl.load(offset_ptr + i, mask=mask, other=0.0).to(tl.float32)
    tl.store(logits_ptr + place, value.to(logits_ptr.dtype.element_ty), mask=mask)


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, bitmask: torch.Tensor) -> None:
    """See `ops.mask_tokens`."""
    check_logits(logits)
    check("rows", rows, dtypes=(torch.int64,), ndim=1, like=logits)
    check("bitmask", bitmask, dtypes=(torch.int32,), ndim=2, like=logits)
    if len(bitmask) != len(rows):
        raise ValueError(f"bitmask has {len(bitmask)} rows, rows {len(rows)}")
    covered = min(logits.shape[1], 32 * bitmask.shape[1])
    num_tiles = triton.cdiv(covered, TILE)
    if len(rows) and num_tiles:
        _forbid[(len(rows) * num_tiles,)](
            logits, rows, bitmask, covered, logits.stride(0), bitmask.stride(0), num_tiles, BLOCK=TILE, num_warps=4
        )


def penalize(
    logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor, repetition: torch.Tensor, offset: torch.Tensor
) -> None:
    """See `ops.penalize`."""
    check_logits(logits)
    arguments = {"rows": rows, "tokens": tokens, "repetition": repetition, "offset": offset}
    for name, x in arguments.items():
        is_index = name in ("rows", "tokens")
        check(name, x, dtypes=(torch.int64 if is_index else logits.dtype,), ndim=1, like=logits)
        if len(x) != len(rows):
            raise ValueError(f"{name} has {len(x)} values, rows {len(rows)}")
    if len(rows):
        _penalize[(triton.cdiv(len(rows), PLACES),)](
            logits, rows, tokens, repetition, offset, logits.stride(0), len(rows), BLOCK=PLACES, num_warps=4
        )
