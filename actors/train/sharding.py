"""From a configuration to a model that is spread over a group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from ...runtime.errors import ConfigError
from ...schemas.train import TrainConfig
from .group import Group
from .optimizer import Recipe
from .sharded import ShardedModel


def shard_model(module: nn.Module, group: Group, config: TrainConfig) -> ShardedModel:
    """`module` lies whole on the group's device, in the types it is to compute in; what is to be trained requires a
    gradient. From here on its parameters belong to the result: at stages 2 and 3 they are DTensors between passes.

    The ranks begin with rank 0's trainable parameters. ConfigError where the stage is unknown or nothing is trainable.
    """
    trained = [param for param in module.parameters() if param.requires_grad]
    if not trained:
        raise ConfigError(
            "no parameter would be trained", hint="`trainable` and `frozen` are patterns of parameter names"
        )
    zero = config.shards.zero
    if zero not in (1, 2, 3):
        raise ConfigError(f"shards.zero is {zero}", hint="there are the stages 1, 2 and 3")
    with torch.no_grad():
        for param in module.parameters():
            param.data = param.data.contiguous()
        if group.world_size > 1:
            for param in trained:
                dist.broadcast(param.data, 0)
    recipe = Recipe.of(config)
    if zero == 1 or group.world_size == 1:
        from .replicated import Replicated

        return Replicated(module, group, recipe)
    from .fully_sharded import FullySharded

    return FullySharded(module, group, recipe, keeps_whole=zero == 2)
