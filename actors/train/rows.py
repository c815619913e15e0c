"""How a tensor's rows lie over the ranks: as `torch.chunk` would deal them out, which is what DTensor and FSDP do."""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor, Shard

from .group import Group


def num_rows_each(num_rows: int, world_size: int) -> int:
    """Of a full share; the last ranks may have fewer, or none."""
    return -(-num_rows // world_size)


def rows_of(num_rows: int, world_size: int, rank: int) -> slice:
    each = num_rows_each(num_rows, world_size)
    return slice(min(rank * each, num_rows), min((rank + 1) * each, num_rows))


def shape_in_rows(shape: torch.Size) -> torch.Size:
    """A single number is a row of one."""
    return shape if len(shape) else torch.Size([1])


def row_length(shape: torch.Size) -> int:
    return shape[1:].numel()


def spread(local: torch.Tensor, shape: torch.Size, group: Group) -> torch.Tensor:
    """`local`, this rank's rows of a tensor of `shape`, as a DTensor over the group; itself in a group of one."""
    mesh = group.mesh_of(local.device)
    if mesh is None:
        return local
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
