"""The low-rank side of a trained linear layer, fused with the passes over activations that it needs.

Forward: the second product is added where the first one's result lies. Backward: one pass over dy gives both what it
sends to the rank and the gradient of b; one pass over x and dx gives the gradient of a and completes dx. Sums across
programs are written as parts and added up in order: a run repeats bit for bit, which atomics would not promise.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import lora_train
from ..lora_train import FrozenWeight
from .launch import check
from .tiles import FLOATS, num_splits, power_of_two

TOKENS = 32
MIN_RANK = 16
MAX_RANK = 128
# The columns of activations that a program takes at a time, by the rank's width (a wide rank leaves fewer registers);
# of float32 half as many.
COLUMNS = {16: 128, 32: 128, 64: 64, 128: 64}
# Of dy: one pass instead of two saves 2 bytes a value, and the parts that it needs cost 8 * rank / columns, so the
# columns are many (of float32, as many as registers hold), and for a rank wider than this two products are the
# cheaper.
FUSED_COLUMNS = {2: 256, 4: 64}
FUSED_RANK = 32


@triton.jit
def _product(x, y, EXACT: tl.constexpr):
    """In float32, and for float32 inputs nearly of its precision: three tensor-core products of halves of each."""
    if EXACT:
        return tl.dot(x, y, input_precision="tf32x3")
    else:
        return tl.dot(x, y)


@triton.jit
def _add_low_rank(
    y_ptr, low_ptr, b_ptr, num_tokens, num_out, rank, scale, y_stride,
    EXACT: tl.constexpr, TOKENS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = (tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    out = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, RANK)
    low = tl.load(
        low_ptr + token[:, None] * rank + r[None, :],
        mask=(token < num_tokens)[:, None] & (r < rank)[None, :],
        other=0.0,
    )
    b = tl.load(
        b_ptr + out[None, :] * rank + r[:, None], mask=(r < rank)[:, None] & (out < num_out)[None, :], other=0.0
    )
    target = y_ptr + token[:, None] * y_stride + out[None, :]
    mask = (token < num_tokens)[:, None] & (out < num_out)[None, :]
    y = tl.load(target, mask=mask, other=0.0).to(tl.float32) + scale * _product(low, b, EXACT)
    tl.store(target, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _output_side(
    dy_ptr, low_ptr, b_ptr, dlow_ptr, db_ptr, num_tokens, num_out, rank, dy_stride, split_tokens,
    EXACT: tl.constexpr, TOKENS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For one tile of outputs and one piece of the tokens: parts of dy @ b, [num_tiles, num_tokens, RANK], and of
    dy.T @ low, [num_pieces, num_out, RANK], unscaled."""
    piece = tl.program_id(0)
    tile = tl.program_id(1)
    out = tile * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, RANK)
    b = tl.load(
        b_ptr + out[:, None] * rank + r[None, :], mask=(out < num_out)[:, None] & (r < rank)[None, :], other=0.0
    )
    db = tl.zeros([BLOCK, RANK], tl.float32)
    begin = piece * split_tokens
    end = tl.minimum(begin + split_tokens, num_tokens)
    for first in range(begin, end, TOKENS):
        token = (first + tl.arange(0, TOKENS)).to(tl.int64)
        here = (token < end)[:, None]
        dy = tl.load(
            dy_ptr + token[:, None] * dy_stride + out[None, :], mask=here & (out < num_out)[None, :], other=0.0
        )
        low = tl.load(low_ptr + token[:, None] * rank + r[None, :], mask=here & (r < rank)[None, :], other=0.0)
        db += _product(tl.trans(dy), low, EXACT)
        part = dlow_ptr + (tile.to(tl.int64) * num_tokens + token[:, None]) * RANK + r[None, :]
        tl.store(part, _product(dy, b, EXACT), mask=here)
    part = db_ptr + (piece.to(tl.int64) * num_out + out[:, None]) * RANK + r[None, :]
    tl.store(part, db, mask=(out < num_out)[:, None])


@triton.jit
def _input_side(
    dx_ptr, x_ptr, dlow_ptr, a_ptr, da_ptr, num_tokens, num_in, rank, dx_stride, x_stride, split_tokens,
    WITH_DX: tl.constexpr, EXACT: tl.constexpr, TOKENS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For one tile of inputs and one piece of the tokens: a part of dlow.T @ x, [num_pieces, RANK, num_in], and dx
    completed there."""
    piece = tl.program_id(0)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, RANK)
    a = tl.load(a_ptr + r[:, None] * num_in + i[None, :], mask=(r < rank)[:, None] & (i < num_in)[None, :], other=0.0)
    da = tl.zeros([RANK, BLOCK], tl.float32)
    begin = piece * split_tokens
    end = tl.minimum(begin + split_tokens, num_tokens)
    for first in range(begin, end, TOKENS):
        token = (first + tl.arange(0, TOKENS)).to(tl.int64)
        here = (token < end)[:, None]
        mask = here & (i < num_in)[None, :]
        x = tl.load(x_ptr + token[:, None] * x_stride + i[None, :], mask=mask, other=0.0)
        dlow = tl.load(dlow_ptr + token[:, None] * rank + r[None, :], mask=here & (r < rank)[None, :], other=0.0)
        da += _product(tl.trans(dlow), x, EXACT)
        if WITH_DX:
            target = dx_ptr + token[:, None] * dx_stride + i[None, :]
            dx = tl.load(target, mask=mask, other=0.0).to(tl.float32) + _product(dlow, a, EXACT)
            tl.store(target, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    part = da_ptr + (piece.to(tl.int64) * RANK + r[:, None]) * num_in + i[None, :]
    tl.store(part, da, mask=(i < num_in)[None, :])


class TritonSteps:
    """`lora_train.Steps` on a card."""

    def add_low_rank(self, y: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        if y.numel():
            b = b.contiguous()
            tiles = _Tiles(y, b.shape[1])
            grid = (triton.cdiv(len(y), TOKENS), tiles.num)
            _add_low_rank[grid](y, low, b, len(y), y.shape[1], b.shape[1], scale, y.stride(0), **tiles.flags)

    def output_side(
        self, dy: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_tokens, num_out = dy.shape
        b, rank = b.contiguous(), b.shape[1]
        if rank > FUSED_RANK:
            return lora_train.TorchSteps().output_side(dy, low, b, scale)
        tiles = _Tiles(dy, rank, FUSED_COLUMNS[dy.element_size()])
        dlow = torch.zeros(tiles.num, num_tokens, tiles.width, dtype=torch.float32, device=dy.device)
        db = torch.zeros(tiles.num_pieces, num_out, tiles.width, dtype=torch.float32, device=dy.device)
        if dy.numel():
            grid = (tiles.num_pieces, tiles.num)
            sizes = (num_tokens, num_out, rank, dy.stride(0), tiles.piece_size)
            _output_side[grid](dy, low, b, dlow, db, *sizes, **tiles.flags)
        dlow, db = dlow.sum(0)[:, :rank], db.sum(0)[:, :rank]
        return dlow.mul_(scale).to(dy.dtype).contiguous(), db.mul_(scale)

    def input_side(self, dx: torch.Tensor | None, x: torch.Tensor, dlow: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        num_tokens, num_in = x.shape
        a, rank = a.contiguous(), a.shape[0]
        tiles = _Tiles(x, rank)
        da = torch.zeros(tiles.num_pieces, tiles.width, num_in, dtype=torch.float32, device=x.device)
        if x.numel():
            grid = (tiles.num_pieces, tiles.num)
            target = x if dx is None else dx  # a pointer that is not read
            sizes = (num_tokens, num_in, rank, target.stride(0), x.stride(0), tiles.piece_size)
            _input_side[grid](target, x, dlow, a, da, *sizes, WITH_DX=dx is not None, **tiles.flags)
        return da.sum(0)[:rank]


class _Tiles:
    """How activations [num_tokens, size] are divided: tiles of their columns, pieces of their rows."""

    def __init__(self, activations: torch.Tensor, rank: int, columns: int = 0) -> None:
        """`columns`: of a tile, where that is not `COLUMNS`."""
        num_tokens, size = activations.shape
        self.width = max(MIN_RANK, power_of_two(rank))
        size_of_value = activations.element_size()
        block = columns or COLUMNS[self.width] * 2 // size_of_value
        self.num = -(-size // block)
        wanted = num_splits(self.num, num_tokens, 4 * TOKENS, activations.device)
        self.piece_size = max(TOKENS, -(-num_tokens // (wanted * TOKENS)) * TOKENS)
        self.num_pieces = max(1, -(-num_tokens // self.piece_size))
        is_float = activations.dtype == torch.float32
        self.flags = {
            "EXACT": is_float,
            "TOKENS": TOKENS,
            "RANK": self.width,
            "BLOCK": block,
            "num_warps": 8 if block > 128 else 4,
        }


def lora_linear(
    x: torch.Tensor,
    weight: FrozenWeight,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `ops_training.lora_linear`. Ranks of up to 128."""
    check("x", x, dtypes=FLOATS, ndim=max(1, x.ndim), like=x)
    check("a", a, dtypes=FLOATS, ndim=2, like=x)
    check("b", b, dtypes=FLOATS, ndim=2, like=x)
    if a.shape[0] > MAX_RANK:
        raise ValueError(f"a has rank {a.shape[0]}; this kernel takes at most {MAX_RANK}")
    return lora_train.lora_linear(x, weight, a, b, scale, bias, TritonSteps())
