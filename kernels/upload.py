"""From the host to a device: many small tensors in one copy, and nobody waits for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Each tensor begins at a multiple of so many bytes, as those that are allocated do: Triton compiles a kernel again for
# pointers of another alignment.
ALIGNMENT = 256


def upload(tensors: Sequence[torch.Tensor], device: torch.device | str) -> list[torch.Tensor]:
    """CPU tensors of one type on `device`. On the CPU they are the same tensors, elsewhere parts of one new tensor.

    To a card they go through pinned memory, in the order of the current stream; the host goes on at once.
    """
    device = torch.device(device)
    if device.type == "cpu" or not tensors:
        return list(tensors)
    packed, starts = pack(tensors, pinned=device.type == "cuda")
    moved = packed.to(device, non_blocking=True)
    return [
        moved[start : start + tensor.numel()].view(tensor.shape) for start, tensor in zip(starts, tensors, strict=True)
    ]


def pack(tensors: Sequence[torch.Tensor], *, pinned: bool = False) -> tuple[torch.Tensor, list[int]]:
    """All values in one tensor, and where those of each begin in it."""
    dtype = tensors[0].dtype
    if any(tensor.dtype != dtype for tensor in tensors):
        raise ValueError(f"tensors of several types: {', '.join(str(tensor.dtype) for tensor in tensors)}")
    step = ALIGNMENT // dtype.itemsize
    starts, size = [], 0
    for tensor in tensors:
        starts.append(size)
        size += -(-tensor.numel() // step) * step
    packed = torch.empty(size, dtype=dtype, pin_memory=pinned)
    for start, tensor in zip(starts, tensors, strict=True):
        packed[start : start + tensor.numel()].view(tensor.shape).copy_(tensor)
    return packed, starts
