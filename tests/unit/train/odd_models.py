"""Models that are not one type throughout, or not used only by their forward pass: small, and trained for some steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from shard_jobs import CPU, config_of, meeting
from torch import nn
from torch.utils.checkpoint import checkpoint

from callboard.actors.train.group import Group, alone
from callboard.actors.train.memory import StateBytes
from callboard.actors.train.sharding import shard_model
from callboard.kernels.nf4 import Nf4Weight

WIDTH, NUM_CLASSES, NUM_STEPS = 64, 5, 5


class FourBits(nn.Module):
    """A frozen matrix in four bits with a trained one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = Nf4Weight.from_float(torch.randn(WIDTH, WIDTH) / 8)
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.base.dequantize(x.dtype).T) * self.scale.to(x.dtype)


class Layer(nn.Module):
    def __init__(self, *, four_bits: bool) -> None:
        super().__init__()
        self.linear = FourBits() if four_bits else nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.tanh(self.linear(self.norm(x)))


@dataclass(frozen=True)
class Kind:
    """`four_bits`: what is not trained. `wide_head`: float32 on bfloat16. `outside`: the head's weight is taken by the
    loss, after the forward pass. `recomputed`: layers run again in the backward pass."""

    four_bits: bool = False
    wide_head: bool = False
    outside: bool = False
    recomputed: bool = False
    partly_frozen: bool = False


class Model(nn.Module):
    def __init__(self, kind: Kind) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind = kind
        self.layers = nn.ModuleList(Layer(four_bits=kind.four_bits) for _ in range(3))
        if kind.wide_head:
            self.layers.to(torch.bfloat16)
        if kind.partly_frozen:
            self.layers[0].requires_grad_(False)
        self.embed = nn.Embedding(11, WIDTH, dtype=torch.bfloat16 if kind.wide_head else torch.float32)
        self.head = nn.Linear(WIDTH, NUM_CLASSES, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.kind.recomputed else layer(x)
        if self.kind.outside:
            return x
        return self.head(x.float())


def trained(group: Group, kind: Kind, zero: int) -> tuple[list[float], StateBytes, set[torch.dtype]]:
    module = Model(kind)
    sharded = shard_model(module, group, config_of(zero))
    seen: set[torch.dtype] = set()
    module.head.register_forward_hook(lambda head, *_: seen.add(head.weight.dtype))

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        out = sharded.module(tokens)
        logits = out @ module.head.weight.T if kind.outside else out
        return nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten() % NUM_CLASSES, reduction="sum") / 64

    losses: list[float] = []
    for step in range(NUM_STEPS):
        numbers = torch.Generator().manual_seed(step)
        batches = torch.randint(0, 11, (4, 2, 8), generator=numbers)
        total = torch.zeros(())
        with torch.no_grad():  # an evaluation, which leaves what it gathers
            loss_of(batches[0])
        mine = batches[group.rank :: group.world_size]
        for number, tokens in enumerate(mine):
            sharded.begin_micro_batch(last=number == len(mine) - 1)
            loss = loss_of(tokens)
            loss.backward()
            total += loss.detach()
        sharded.finish_gradients()
        sharded.step(1e-2, torch.ones(()))
        if group.world_size > 1:
            dist.all_reduce(total)
        losses.append(float(total))
    return losses, sharded.memory(), seen


def trained_together(
    rank: int, world_size: int, store: str, kind: Kind, zero: int
) -> tuple[list[float], StateBytes, set[torch.dtype]]:
    with meeting(rank, world_size, store) as group:
        return trained(group, kind, zero)


def trained_alone(kind: Kind) -> tuple[list[float], StateBytes, set[torch.dtype]]:
    return trained(alone(CPU), kind, 1)
