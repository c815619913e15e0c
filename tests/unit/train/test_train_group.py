"""Ranks meet over the network, and share what they are told to share."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

import pytest
import torch
from shard_jobs import CPU, attended, joined, shared_attention

from callboard.actors.train.group import alone, join
from callboard.actors.train.ulysses import check_heads, sequence_group
from callboard.runtime.errors import ConfigError

if TYPE_CHECKING:
    from rank_processes import Ranks


def free_port() -> int:
    """Below those that the system hands out by itself, so that nobody gets it by chance meanwhile."""
    while True:
        port = random.randrange(15000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def test_ranks_meet_at_a_port(ranks: Ranks) -> None:
    """Twice, by the same processes: the first group has left nothing."""
    for _ in range(2):
        assert ranks.run(joined, free_port()) == [(0, 2, [10, 11]), (1, 2, [10, 11])]


def test_one_needs_nobody() -> None:
    assert join(0, 1, "nowhere", 0, CPU) == alone(CPU)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_shared_sequences_are_attended_as_whole_ones(ranks: Ranks, num_heads: int, num_kv_heads: int) -> None:
    inputs = [torch.randn(12, heads, 8, dtype=torch.float64) for heads in (num_heads, num_kv_heads, num_kv_heads)]
    whole = [x.clone().requires_grad_() for x in inputs]
    out = attended(*whole)
    out.sin().sum().backward()
    expected = [out.detach(), *(x.grad for x in whole)]
    parts = ranks.run(shared_attention, inputs)
    for number, tensor in enumerate(expected):
        assert tensor is not None
        assert torch.allclose(torch.cat([part[number] for part in parts]), tensor, atol=1e-12)


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="heads"):
        check_heads(6, 2, 4)
    with pytest.raises(ConfigError, match="heads"):
        check_heads(12, 3, 2)
    check_heads(8, 2, 4)
    with pytest.raises(ConfigError, match="to a sequence"):
        sequence_group(alone(CPU), 2)
