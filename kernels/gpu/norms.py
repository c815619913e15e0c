"""Root mean square norm, alone and after adding to the residual stream. A row is read from memory once where it fits a
program's registers, else a second time, then mostly from the cache."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import check
from .tiles import FLOATS, MAX_TILE, num_warps, power_of_two, rows_of

# Rows that one program takes where they are short (query and key norms: a head each).
SHORT_ROWS = 2048


@triton.jit
def _norm_rows(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    num_rows,
    hidden,
    inner,
    outer_stride,
    inner_stride,
    residual_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS whole rows: BLOCK is at least `hidden`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    mask = (row < num_rows)[:, None] & (column < hidden)[None, :]
    start = (row // inner) * outer_stride + (row % inner) * inner_stride
    x = tl.load(x_ptr + start[:, None] + column[None, :], mask=mask, other=0.0)
    if HAS_RESIDUAL:
        place = residual_ptr + row[:, None] * residual_stride + column[None, :]
        total = x.to(tl.float32) + tl.load(place, mask=mask, other=0.0).to(tl.float32)
        x = total.to(x.dtype)
        tl.store(place, x, mask=mask)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) / hidden + eps)
    weight = tl.load(weight_ptr + column, mask=column < hidden, other=0.0).to(tl.float32)
    # Rounded before the weight comes to it, as families' own code does.
    normed = (wide * scale[:, None]).to(x.dtype).to(tl.float32) * weight[None, :]
    tl.store(out_ptr + row[:, None] * hidden + column[None, :], normed.to(x.dtype), mask=mask)


@triton.jit
def _norm_wide_row(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    hidden,
    inner,
    outer_stride,
    inner_stride,
    residual_stride,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row in pieces of BLOCK: a pass for the sum of squares, a pass for the result."""
    row = tl.program_id(0).to(tl.int64)
    x_row = x_ptr + (row // inner) * outer_stride + (row % inner) * inner_stride
    residual_row = residual_ptr + row * residual_stride
    squares = tl.zeros([BLOCK], tl.float32)
    for first in range(0, hidden, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = column < hidden
        x = tl.load(x_row + column, mask=mask, other=0.0)
        if HAS_RESIDUAL:
            total = x.to(tl.float32) + tl.load(residual_row + column, mask=mask, other=0.0).to(tl.float32)
            x = total.to(x.dtype)
            tl.store(residual_row + column, x, mask=mask)
        wide = x.to(tl.float32)
        squares += wide * wide
    scale = tl.rsqrt(tl.sum(squares, 0) / hidden + eps)
    tl.debug_barrier()  # what is read next, another thread may have written
    source = residual_row if HAS_RESIDUAL else x_row
    for first in range(0, hidden, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = column < hidden
        x = tl.load(source + column, mask=mask, other=0.0)
        weight = tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
        normed = (x.to(tl.float32) * scale).to(x.dtype).to(tl.float32) * weight
        tl.store(out_ptr + row * hidden + column, normed.to(x.dtype), mask=mask)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `ops.rms_norm`. Up to three dimensions of any strides; the last must be contiguous."""
    _check(x, weight)
    return _launch(x, None, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ops.add_rms_norm`; `residual`, of any strides between rows, becomes the sum."""
    _check(x, weight)
    check("residual", residual, dtypes=(x.dtype,), ndim=x.ndim, like=x)
    if residual.shape != x.shape:
        raise ValueError(f"residual has the shape {tuple(residual.shape)}, x {tuple(x.shape)}")
    rows = residual.view(-1, x.shape[-1]) if residual.ndim != 2 else residual  # the sum is written to it: no copies
    return _launch(x, rows, weight, eps), residual


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    check("x", x, dtypes=FLOATS, ndim=max(1, x.ndim), like=x)
    check("weight", weight, dtypes=(x.dtype,), ndim=1, like=x)
    if weight.shape[0] != x.shape[-1]:
        raise ValueError(f"weight has {weight.shape[0]} values, a row of x {x.shape[-1]}")


def _launch(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    hidden = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, inner, outer_stride, inner_stride = rows_of(x)
    num_rows = out.numel() // hidden if hidden else 0
    if not num_rows:
        return out
    stream = out if residual is None else residual  # a pointer that is not read
    residual_stride = 0 if residual is None else residual.stride(0)
    strides = (inner, outer_stride, inner_stride, residual_stride)
    if hidden <= MAX_TILE:
        block = power_of_two(hidden)
        num_each = max(1, SHORT_ROWS // block)
        grid = (triton.cdiv(num_rows, num_each),)
        _norm_rows[grid](
            rows, stream, weight, out, num_rows, hidden, *strides, eps,
            HAS_RESIDUAL=residual is not None, ROWS=num_each, BLOCK=block, num_warps=num_warps(num_each * block),
        )  # fmt: skip
    else:
        _norm_wide_row[(num_rows,)](
            rows, stream, weight, out, hidden, *strides, eps,
            HAS_RESIDUAL=residual is not None, BLOCK=4096, num_warps=8,
        )  # fmt: skip
    return out
