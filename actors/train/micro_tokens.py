"""How many tokens go through a model at once, where the configuration leaves that open, and whether a run fits."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from ...schemas.train import TrainConfig
from .group import Group
from .needs import Plan

# With so many rows a card is busy, and what a processor does between its products counts for little.
_MOST = {"cpu": 4096, "cuda": 16384}
# Where a sample's length is not limited, so many tokens are to fit at least.
_LEAST = 256
# The part of what is free that a run may count on.
_SHARE = 0.8
_FILE = "micro_tokens"


def choose_micro_tokens(config: TrainConfig, folder: Path, plan: Plan, group: Group) -> int:
    """The setting, or what the memory that is free has room for. A run keeps what it began with, in its folder: sums
    in another order would be other weights. Called before the weights are loaded, by every rank.

    Raises NotEnoughMemory, which says what would fit.
    """
    chosen = torch.zeros((), dtype=torch.int64, device=group.device)
    if group.rank == 0:
        chosen += _chosen(config, folder, plan, group)
    if group.mesh is not None:
        dist.all_reduce(chosen, group=group.mesh.get_group())
    return int(chosen)


def _chosen(config: TrainConfig, folder: Path, plan: Plan, group: Group) -> int:
    path = folder / _FILE
    if path.is_file():
        return int(path.read_text())
    free = _SHARE * free_memory(group)
    number = config.batch.micro_tokens
    if not number:
        fewest = min(_MOST[group.device.type], config.batch.max_tokens or _LEAST)
        number = max(fewest, min(_MOST[group.device.type], plan.largest_micro_tokens(free)))
    plan.check(number, free)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(number))
    return number


def free_memory(group: Group) -> float:
    """Bytes for one rank: of its card, or its share of the host's, which is taken to be that of all ranks."""
    if group.device.type == "cuda":
        return torch.cuda.mem_get_info(group.device)[0]
    return psutil.virtual_memory().available / group.world_size
