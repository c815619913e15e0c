"""The gate product of gated MLPs: activation(first half) * second half, in one pass."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from .launch import check
from .tiles import FLOATS, power_of_two

TILE = 2048
# Of the approximation gelu(x) = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x**3)), arXiv:1606.08415.
GELU_FACTOR = tl.constexpr(2 * math.sqrt(2 / math.pi))
GELU_CUBIC = tl.constexpr(0.044715)


@triton.jit
def _gate_product(
    gate_up_ptr, out_ptr, intermediate, row_stride, num_tiles, GELU: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program // num_tiles
    column = (program % num_tiles) * BLOCK + tl.arange(0, BLOCK)
    mask = column < intermediate
    gate_row = gate_up_ptr + row * row_stride
    gate = tl.load(gate_row + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_row + intermediate + column, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        inner = GELU_FACTOR * (gate + GELU_CUBIC * gate * gate * gate)
    else:
        inner = gate
    # A sigmoid whose exponential never overflows, whatever the sign.
    small = tl.exp(-tl.abs(inner))
    sigmoid = tl.where(inner >= 0, 1.0, small) / (1.0 + small)
    tl.store(out_ptr + row * intermediate + column, (gate * sigmoid * up).to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `ops.silu_mul`."""
    return _launch(gate_up, gelu=False)


def gelu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `ops.gelu_mul`."""
    return _launch(gate_up, gelu=True)


def _launch(gate_up: torch.Tensor, *, gelu: bool) -> torch.Tensor:
    check("gate_up", gate_up, dtypes=FLOATS, ndim=2, like=gate_up)
    num_tokens, width = gate_up.shape
    if width % 2:
        raise ValueError(f"gate_up has {width} columns: an even number is needed")
    out = torch.empty(num_tokens, width // 2, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        block = min(TILE, power_of_two(width // 2))
        num_tiles = triton.cdiv(width // 2, block)
        _gate_product[(num_tokens * num_tiles,)](
            gate_up, out, width // 2, gate_up.stride(0), num_tiles,
            GELU=gelu, BLOCK=block, num_warps=max(1, block // 512),
        )  # fmt: skip
    return out
