"""The processes that train one model together, as one of them sees them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Group:
    """`mesh` is one-dimensional, over all ranks; None for a group of one, which needs no torch.distributed."""

    rank: int
    world_size: int
    device: torch.device
    mesh: DeviceMesh | None = None


def alone(device: torch.device) -> Group:
    return Group(0, 1, device)
