"""How many tokens go through a model at once, where the configuration leaves that open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from ...schemas.train import TrainConfig
from .group import Group

# More rows make products no faster: a processor's caches are full, a card's cores are busy.
_MOST = {"cpu": 2048, "cuda": 16384}
_LEAST = 256
# The part of what is free that activations may take.
_SHARE = 0.5
_FILE = "micro_tokens"


def choose_micro_tokens(config: TrainConfig, folder: Path, model: Any, group: Group) -> int:
    """The setting, or what the memory that is free has room for. A run keeps what it began with, in its folder: sums
    in another order would be other weights."""
    if config.batch.micro_tokens:
        return config.batch.micro_tokens
    chosen = torch.zeros((), dtype=torch.int64, device=group.device)
    if group.rank == 0:
        path = folder / _FILE
        if not path.is_file():
            free = free_memory(group.device)
            fitting = int(_SHARE * free / activation_bytes(model, config))
            number = max(_LEAST, min(_MOST[group.device.type], fitting))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(number))
        chosen += int(path.read_text())
    if group.mesh is not None:
        dist.all_reduce(chosen, group=group.mesh.get_group())
    return int(chosen)


def activation_bytes(model: Any, config: TrainConfig) -> int:
    """What a token leaves behind for the backward pass, about: in each layer the inputs of its products, the gate and
    its other factor, queries, keys, values and the output of attention; with checkpoints the layer's input alone."""
    shape = model.config.get_text_config()
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    inner = getattr(shape, "intermediate_size", None) or 4 * hidden
    size = next(model.parameters()).element_size()
    if config.compute.checkpointing == "full":
        return size * (layers * hidden + 10 * hidden + 4 * inner)
    return size * layers * (10 * hidden + 4 * inner)


def free_memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
