"""Long sequences shared by ranks: each has a part of the tokens, and for attention all tokens of a part of the heads.

Jacobs et al., "DeepSpeed Ulysses" (arXiv:2309.14509). All but attention goes token by token, so a rank computes its
tokens alone; around attention the ranks trade.

    rank 0  tokens 0-3, heads 0-3             rank 0  tokens 0-7, heads 0-1
    rank 1  tokens 4-7, heads 0-3     <->     rank 1  tokens 0-7, heads 2-3

A rank's loss is that of its tokens, divided by the count of all: gradients of parameters are then sums over all ranks,
as they are without this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ...runtime.errors import ConfigError
from .group import Group

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Attention over q [num_tokens, num_heads, head_dim], k and v [num_tokens, num_kv_heads, head_dim]: as q."""


@dataclass(frozen=True)
class SequenceGroup:
    """The `size` ranks that share sequences; of these, `rank` is this one. `number`: which of the group's such parts it
    is: what tells their data apart."""

    rank: int
    size: int
    number: int
    ranks: dist.ProcessGroup

    def tokens(self, num_tokens: int) -> slice:
        """This rank's, of so many; they are padded to a multiple of `size` before."""
        if num_tokens % self.size:
            raise ValueError(f"{num_tokens} tokens cannot be shared equally by {self.size} ranks")
        each = num_tokens // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attend: Attend) -> torch.Tensor:
        """q [num_local_tokens, num_heads, head_dim], k and v [num_local_tokens, num_kv_heads, head_dim] of this rank's
        tokens; `attend` sees all tokens, in order, and some of the heads. As q, differentiable."""
        num_heads, num_kv_heads = q.shape[1], k.shape[1]
        check_heads(num_heads, num_kv_heads, self.size)
        if num_kv_heads < self.size:  # each goes to all ranks that have queries for it
            k, v = (x.repeat_interleave(self.size // num_kv_heads, 1) for x in (k, v))
        out = attend(*(_trade(x, self, to_heads=True) for x in (q, k, v)))
        return _trade(out, self, to_heads=False)


def check_heads(num_heads: int, num_kv_heads: int, size: int) -> None:
    """ConfigError where `size` ranks cannot share the heads equally."""
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        raise ConfigError(
            f"{num_heads} heads with {num_kv_heads} of keys and values cannot be shared by {size} ranks",
            hint="shards.sequence_parallel has to divide the number of heads, and to divide that of keys and values or "
            "be a multiple of it",
        )


def sequence_group(group: Group, size: int) -> SequenceGroup:
    """Ranks that follow each other share sequences. Every rank calls this; ConfigError where `size` does not divide the
    group."""
    if size < 2 or group.world_size % size:
        raise ConfigError(
            f"{group.world_size} shards cannot be {size} to a sequence",
            hint="shards.sequence_parallel has to divide shards.count",
        )
    mine: Any = None
    for first in range(0, group.world_size, size):
        ranks = list(range(first, first + size))
        made = dist.new_group(ranks)
        if group.rank in ranks:
            mine = made
    return SequenceGroup(group.rank % size, size, group.rank // size, mine)


class _Trade(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: SequenceGroup, to_heads: bool) -> torch.Tensor:
        ctx.group, ctx.to_heads = group, to_heads
        return _traded(x, group, to_heads)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        # What one way hands out, the other hands back.
        return _traded(grads[0], ctx.group, not ctx.to_heads), None, None


def _trade(x: torch.Tensor, group: SequenceGroup, *, to_heads: bool) -> torch.Tensor:
    """[num_local_tokens, num_heads, head_dim] to [num_tokens, num_local_heads, head_dim], or back."""
    traded = _Trade.apply(x, group, to_heads)
    assert isinstance(traded, torch.Tensor)
    return traded


def _traded(x: torch.Tensor, group: SequenceGroup, to_heads: bool) -> torch.Tensor:
    size = group.size
    num_tokens, num_heads, head_dim = x.shape
    if to_heads:
        # By the rank that gets them: [size, num_local_tokens, num_local_heads, head_dim].
        parts = x.view(num_tokens, size, num_heads // size, head_dim).transpose(0, 1).contiguous()
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group.ranks)
        return received.view(size * num_tokens, num_heads // size, head_dim)
    parts = x.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group.ranks)
    # By the rank they come from, which is whose heads they are.
    by_rank = received.view(size, num_tokens // size, num_heads, head_dim)
    return by_rank.transpose(0, 1).reshape(num_tokens // size, size * num_heads, head_dim)
