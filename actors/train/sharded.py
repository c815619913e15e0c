"""What a training step needs of a model that is spread over a group: one protocol for every ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from .group import Group
from .memory import StateBytes


class ShardedModel(Protocol):
    """A model whose trainable parameters, their gradients and the optimizer's state lie over a group's ranks.

    A step on every rank, each with as many micro-batches as the others:

        for number, batch in enumerate(micro_batches):
            model.begin_micro_batch(last=number == len(micro_batches) - 1)
            loss_of(model.module, batch).backward()     # a sum already divided by the whole step's count
        norm = model.finish_gradients()                 # gradients are now sums over all ranks' micro-batches
        model.step(lr, scale)                           # or model.drop_gradients()
    """

    module: nn.Module
    group: Group

    def begin_micro_batch(self, last: bool) -> None: ...

    def finish_gradients(self) -> torch.Tensor:
        """Add up the ranks' gradients; their norm over all of the model, a float32 scalar, the same on every rank."""
        ...

    def step(self, lr: float, scale: torch.Tensor) -> None:
        """One optimizer step with the gradients times `scale` (a float32 scalar: clipping, the loss scale's inverse),
        which are gone afterwards."""
        ...

    def drop_gradients(self) -> None: ...

    def state_dict(self, num_ranks: int = 0) -> dict[str, Any]:
        """Everything that the next steps depend on, as `torch.distributed.checkpoint` takes it: master weights,
        moments, the average, numbers. What is sharded is a DTensor, so that it loads into another number of shards.
        `num_ranks`: to read what so many ranks have written (0: as many as these)."""
        ...

    def load_state_dict(self, state: dict[str, Any], num_ranks: int = 0) -> None:
        """Take over what was read into the `state_dict` of this very object, of so many ranks."""
        ...

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The trainable parameters by name, whole, in float32, on the CPU: the average where one is kept. Every rank
        goes through it; on other ranks than 0 the tensors are empty."""
        ...

    def memory(self) -> StateBytes:
        """What this rank keeps, measured; gradients as they were after the largest step so far."""
        ...
