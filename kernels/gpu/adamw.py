"""A step of AdamW in one launch for a parameter: everything is read once and written once."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .. import adamw
from ..adamw import Hyper
from ..blockwise8 import BLOCK, Blockwise8, Moment, borders, dynamic_map
from .launch import check
from .tiles import FLOATS

# Blocks of 256 values, each with a scale where moments have eight bits, that one program takes.
BLOCKS = 4


@triton.jit
def _decoded(codes_ptr, scales_ptr, map_ptr, place, mask, block, has_block):
    code = tl.load(codes_ptr + place, mask=mask, other=0).to(tl.int32)
    scale = tl.load(scales_ptr + block, mask=has_block, other=0.0)
    return tl.where(mask, tl.load(map_ptr + code) * scale[:, None], 0.0)


@triton.jit
def _encode(codes_ptr, scales_ptr, borders_ptr, values, place, mask, block, has_block, SIGNED: tl.constexpr):
    scale = tl.max(tl.abs(values), 1)
    share = tl.div_rn(values, tl.where(scale > 0, scale, 1.0)[:, None])
    # How many of the 255 borders lie below, by halving.
    code = tl.zeros(share.shape, tl.int32)
    for i in tl.static_range(8):
        half = 128 >> i
        code += tl.where(share > tl.load(borders_ptr + code + half - 1), half, 0)
    if not SIGNED:
        code = tl.where((code == 0) & (values > 0), 1, code)
    tl.store(codes_ptr + place, code.to(tl.uint8), mask=mask)
    tl.store(scales_ptr + block, scale, mask=has_block)


@triton.jit
def _step(
    param_ptr, grad_ptr, master_ptr, first_ptr, second_ptr, first_scales_ptr, second_scales_ptr,
    first_map_ptr, second_map_ptr, first_borders_ptr, second_borders_ptr, grad_scale_ptr,
    num, keep, size, root, take1, beta2, take2, eps,
    EIGHT_BITS: tl.constexpr, HAS_MASTER: tl.constexpr, HAS_SCALE: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    place = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = place < num
    has_block = block * BLOCK < num
    gradient = tl.load(grad_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if HAS_SCALE:
        gradient *= tl.load(grad_scale_ptr).to(tl.float32)
    if EIGHT_BITS:
        first = _decoded(first_ptr, first_scales_ptr, first_map_ptr, place, mask, block, has_block)
        second = _decoded(second_ptr, second_scales_ptr, second_map_ptr, place, mask, block, has_block)
    else:
        first = tl.load(first_ptr + place, mask=mask, other=0.0)
        second = tl.load(second_ptr + place, mask=mask, other=0.0)
    first += take1 * (gradient - first)
    second = beta2 * second + take2 * (gradient * gradient)
    values_ptr = master_ptr if HAS_MASTER else param_ptr
    values = tl.load(values_ptr + place, mask=mask, other=0.0).to(tl.float32)
    values = keep * values - size * tl.div_rn(first, tl.div_rn(tl.sqrt_rn(second), root) + eps)
    if HAS_MASTER:
        tl.store(master_ptr + place, values, mask=mask)
    tl.store(param_ptr + place, values.to(param_ptr.dtype.element_ty), mask=mask)
    if EIGHT_BITS:
        _encode(first_ptr, first_scales_ptr, first_borders_ptr, first, place, mask, block, has_block, True)
        _encode(second_ptr, second_scales_ptr, second_borders_ptr, second, place, mask, block, has_block, False)
    else:
        tl.store(first_ptr + place, first, mask=mask)
        tl.store(second_ptr + place, second, mask=mask)


@torch.no_grad()
def adamw_step(
    param: torch.Tensor,
    grad: torch.Tensor,
    first: Moment,
    second: Moment,
    step: int,
    hyper: Hyper,
    master: torch.Tensor | None = None,
    grad_scale: torch.Tensor | None = None,
) -> None:
    """See `ops_training.adamw_step`."""
    check("param", param, dtypes=FLOATS, ndim=param.ndim, like=param)
    check("grad", grad, dtypes=FLOATS, ndim=param.ndim, like=param)
    adamw.check(param, grad, first, second, step, master, grad_scale)
    num = param.numel()
    if not num:
        return
    unread = param  # a pointer that is not read
    if isinstance(first, Blockwise8) and isinstance(second, Blockwise8):
        device = param.device
        moments = (first.codes, second.codes, first.scales, second.scales)
        tables = (dynamic_map(True, device), dynamic_map(False, device), borders(True, device), borders(False, device))
    else:
        moments, tables = (first, second, unread, unread), (unread,) * 4
    keep, size, root = hyper.factors(step)
    # What is left of a beta is told apart: 1 - 0.999 in float32 is off by a twenty-thousandth.
    numbers = (keep, size, root, 1 - hyper.beta1, hyper.beta2, 1 - hyper.beta2, hyper.eps)
    _step[(triton.cdiv(num, BLOCKS * BLOCK),)](
        param, grad, unread if master is None else master, *moments, *tables,
        unread if grad_scale is None else grad_scale, num, *numbers,
        EIGHT_BITS=isinstance(first, Blockwise8), HAS_MASTER=master is not None, HAS_SCALE=grad_scale is not None,
        BLOCKS=BLOCKS, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
