"""Products whose sums are divided among programs: how many, where they go, and how they become one result."""
# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
# Kernels are what Triton makes of them: their arguments, launches and loops are not those of plain functions.

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from . import launch

MAX_SPLITS = 16
BLOCK = 1024


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a card; under the interpreter one."""
    if launch.interpreted():
        return 1
    return _num_processors(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _num_processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def count(num_tiles: int, num_steps: int, wanted: int) -> int:
    """How many programs share a tile's sum, so that there are `wanted` where its steps allow."""
    return max(1, min(MAX_SPLITS, num_steps, wanted // max(1, num_tiles)))


def buffer(out: torch.Tensor, num_splits: int) -> torch.Tensor:
    """Where kernels put their sums: `out` itself, or float32 [num_splits, *out.shape] that `add` makes one."""
    if num_splits == 1:
        return out
    return torch.empty(num_splits, *out.shape, dtype=torch.float32, device=out.device)


def add(sums: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """The sums of all programs, from the first to the last, and the bias, into `out` [num_tokens, num_out]."""
    if sums is not out:
        grid = (triton.cdiv(out.numel(), BLOCK),)
        _add[grid](sums, bias, out, out.numel(), out.shape[1], len(sums), BLOCK=BLOCK, num_warps=4)
    return out


@triton.jit
def _add(sums, bias, out, num_values, num_out, num_splits, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_values
    total = tl.zeros([BLOCK], dtype=tl.float32)
    places = sums + place
    for _ in range(num_splits):
        total += tl.load(places, mask=inside, other=0)
        places += num_values
    if bias is not None:
        total += tl.load(bias + place % num_out, mask=inside, other=0).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
