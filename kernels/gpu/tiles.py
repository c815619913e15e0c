"""How rows are divided among programs: widths, warps, and how many programs share one row."""

from __future__ import annotations

import functools

import torch

from .launch import interpreted

# Values of one row that a program holds at a time; 64 for each thread of 8 warps at most.
MAX_TILE = 16384
# Programs on a multiprocessor below which memory is not kept busy.
PROGRAMS_EACH = 4
# Pieces that a row is cut into at most: each program reads what all of a row's pieces found.
MAX_SPLITS = 64
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def power_of_two(n: int) -> int:
    """The next one, `n` itself if it is one."""
    return 1 << max(0, n - 1).bit_length()


def num_warps(tile: int) -> int:
    """For a program over `tile` values: about 16 of them for each thread."""
    return max(1, min(16, power_of_two(tile // 512)))


def num_splits(num_rows: int, row_size: int, tile: int, device: torch.device) -> int:
    """How many programs share each row: one where there are rows enough, more where a few must fill the card.

    No piece is smaller than a tile.
    """
    wanted = -(-PROGRAMS_EACH * _num_multiprocessors(device) // max(1, num_rows))
    return max(1, min(wanted, -(-row_size // tile), MAX_SPLITS))


def split_size(row_size: int, splits: int, tile: int) -> int:
    """The size of each piece but the last: whole tiles."""
    return -(-row_size // (splits * tile)) * tile


@functools.cache
def _num_multiprocessors(device: torch.device) -> int:
    if interpreted():
        return 2  # small, and yet rows are split in tests
    return torch.cuda.get_device_properties(device).multi_processor_count


def rows_of(x: torch.Tensor) -> tuple[torch.Tensor, int, int, int]:
    """x [..., size] as rows without a copy where its layout allows: (x, inner, outer stride, inner stride).

    Row i begins at (i // inner) * outer stride + (i % inner) * inner stride. Heads cut out of a fused product have
    two such strides.
    """
    if x.ndim == 2:
        return x, 1, x.stride(0), 0
    if x.ndim == 3:
        return x, x.shape[1], x.stride(0), x.stride(1)
    flat = x.reshape(-1, x.shape[-1])
    return flat, 1, flat.stride(0), 0
